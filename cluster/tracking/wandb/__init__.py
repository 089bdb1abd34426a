"""Weights & Biases: the run, its history, tables, artifacts and workspace."""
