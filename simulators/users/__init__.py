"""Simulated users: rule-based, LLM, human, recorded and mixed, and their quality metrics."""
