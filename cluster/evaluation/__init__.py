"""Evaluation: rollouts without a learner, scores with intervals, resumable, reported."""
