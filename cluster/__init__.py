"""What runs where: configuration, placement, the driver's loop, evaluation, tracking, the command line."""
