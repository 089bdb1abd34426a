"""Training batches: samples from tables, packed micro-batches, and how much each sample weighs."""
