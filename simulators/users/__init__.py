"""Simulated users: rule-based, LLM, human, recorded and mixed, and what is measured of them."""
