"""The run folder: paths, atomic files, the driver's heartbeat."""
