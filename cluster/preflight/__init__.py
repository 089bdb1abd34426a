"""Checks before a run: addresses, folders, policies, endpoints and demonstrations; the dry run."""
