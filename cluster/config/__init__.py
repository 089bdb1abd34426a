"""The run's configuration: recipe files, their validation, and the reference page of all keys."""
