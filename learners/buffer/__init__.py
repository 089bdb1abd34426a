"""The data plane: group orders go out to rollout actors, finished groups come in, are logged and archived."""
