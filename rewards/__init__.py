"""What a trajectory is worth: one number a turn."""
