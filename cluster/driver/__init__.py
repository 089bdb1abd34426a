"""The driver: the GRPO algorithm, the main job, `userrl evaluate`, checkpoints."""
