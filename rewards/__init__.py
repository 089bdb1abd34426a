"""Rewards: what each turn of a trajectory is worth to the learner, as one number."""
