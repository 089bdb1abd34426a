"""The driver's side of a run's processes: rollout actors, engines, learners, buffer, weight sync, scaling."""
