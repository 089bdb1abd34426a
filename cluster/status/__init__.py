"""`userrl status`: progress, speed and bottleneck of a run, read from its folder."""
