"""Console output: events, the screens that show them, progress and remaining time."""
