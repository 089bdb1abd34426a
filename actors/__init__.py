"""The acting side: policy engines, renderer, rollouts, rollout actors and the records of trajectories."""
