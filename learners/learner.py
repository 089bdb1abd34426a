"""The learner as RLlib knows learners: a `TorchLearner` that fetches tables for a `PolicyLearner`.

The driver calls its methods through Ray, on every rank alike: all but `saved` and `get_state` are collective.
There is no RLModule: dialogues are sampled by the engine, and the policy's weights travel through `weights`.
"""

from collections.abc import Sequence
from typing import Literal, NoReturn

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule

from learners.checkpoint import SaveReport
from learners.policy_learner import PolicyLearner

FETCH_TIMEOUT_S = 120.0
"""Longest wait for a step's tables."""


class GRPOLearner(TorchLearner):
    """One training rank as a process. `config.learner_settings`, a `LearnerSettings`, says everything."""

    def build(self) -> None:
        """Called once, by the LearnerGroup."""
        self._learner = PolicyLearner(vars(self.config)["learner_settings"])
        self._is_built = True

    def update_groups(self, group_refs: Sequence[ray.ObjectRef], *, step: int) -> dict[str, float]:
        """`PolicyLearner.update_groups` on references to the groups' tables."""
        return self._learner.update_groups(_fetch(group_refs), step=step)

    def set_demonstrations(self, table_refs: Sequence[ray.ObjectRef]) -> int:
        """`PolicyLearner.set_demonstrations` on references to tables."""
        return self._learner.set_demonstrations(_fetch(table_refs))

    def sft_updates(self, *, first_step: int, num_steps: int) -> dict[str, float]:
        return self._learner.sft_updates(first_step=first_step, num_steps=num_steps)

    def weights(
        self, *, dtype: Literal["float32", "bfloat16", "auto"]
    ) -> tuple[NDArray[np.uint8], dict[str, float]] | None:
        return self._learner.weights(dtype=dtype)

    def save(self, path: str) -> None:
        self._learner.save(path)

    def saved(self, *, wait: bool) -> SaveReport:
        return self._learner.saved(wait=wait)

    def load(self, path: str) -> None:
        self._learner.load(path)

    def export(self, folder: str) -> None:
        self._learner.export(folder)

    def get_state(self, *args: object, **kwargs: object) -> dict[str, object]:
        """Nothing: RLlib asks one rank alone, where a sharded policy cannot be gathered. See `save` and
        `weights`."""
        return {COMPONENT_RL_MODULE: {}}

    def set_state(self, state: dict[str, object]) -> None:
        """Takes nothing back; see `load`."""

    def get_checkpointable_components(self) -> list[tuple[str, MultiRLModule]]:
        return []

    def compute_loss_for_module(self, **kwargs: object) -> NoReturn:
        """RLlib's own update path, which cuts batches without regard to groups: not taken."""
        raise NotImplementedError("GRPOLearner learns through update_groups and sft_updates")


def _fetch(refs: Sequence[ray.ObjectRef]) -> list[pa.Table]:
    return ray.get(list(refs), timeout=FETCH_TIMEOUT_S)
