"""The data plane: group orders out to rollout actors, finished groups in, bounded in age, logged and archived."""
