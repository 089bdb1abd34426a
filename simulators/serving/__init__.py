"""Simulated users on Ray Serve: the application, its client, its authentication, and hosted models."""
