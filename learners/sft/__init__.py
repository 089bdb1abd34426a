"""Supervised fine-tuning: where demonstrations come from and which of them make a step."""
