"""Ray jobs: `userrl submit`, `jobs`, `logs` and `stop`."""
