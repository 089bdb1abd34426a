"""Tells a person when a step finds nothing to learn from: it would wait for long while the ledger counts."""

import math

from cluster.config.run_config import RunConfig
from cluster.console.progress import warn

MOST_STEPS = 16
"""Flat groups of one step before somebody is told, in steps' worths."""
CURE = (
    "nothing is learnt where all dialogues of a group have the same reward: have the cold start teach more "
    "(sft.num_demonstrations), ask for less (gyms.difficulty), or reward what differs (reward.weights)"
)


class ZeroAdvantageWarning:
    """For one step."""

    def __init__(self, config: RunConfig, *, step: int):
        self._group_size = config.rollout.group_size
        self._most_groups = MOST_STEPS * config.buffer.groups_per_step
        self._step = step
        self._before = math.inf
        self._has_told = False

    def look(self, num_flat: float) -> None:
        """`num_flat`: trajectories that the run has dropped as flat so far."""
        self._before = min(self._before, num_flat)
        num_groups = (num_flat - self._before) / self._group_size
        if num_groups > self._most_groups and not self._has_told:
            self._has_told = True
            warn(f"step {self._step}: {num_groups:.0f} groups were flat while it waited: {CURE}")
