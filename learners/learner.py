"""The learner as an RLlib `TorchLearner`: fetches tables from the object store and hands them to a
`PolicyLearner`.

The driver calls its methods through Ray on all ranks: all except `saved`, `credits` and `get_state` are
collective. It has no RLModule: dialogues are sampled by the engines, which get the policy's weights through
`weights` or, between GPUs, `send_weights`.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule

from actors.config import WeightTransport
from actors.gc_freeze import freeze_heap
from learners.buffer.group_store import GroupRows, fetch_groups
from learners.model.checkpoint import SaveReport
from learners.policy_learner import PolicyLearner

if TYPE_CHECKING:
    from actors.weights.gpu_weight_sender import GpuWeightSender

FETCH_TIMEOUT_S = 120.0
"""Timeout for a step's tables."""
SEND_TIMEOUT_S = 300.0
"""Timeout for an engine's part of a transfer between GPUs."""


class GRPOLearner(TorchLearner):
    """One training rank as a process, configured by the `LearnerSettings` in `config.learner_settings`."""

    def build(self) -> None:
        """Called once by the LearnerGroup."""
        self._learner = PolicyLearner(vars(self.config)["learner_settings"])
        self._sender: GpuWeightSender | None = None
        self._sender_engines: list[ActorHandle] = []
        """Engines that the sender is connected to."""
        self._is_built = True
        freeze_heap()

    def update_groups(self, groups: Sequence[GroupRows], *, step: int) -> dict[str, float]:
        """`PolicyLearner.update_groups` on the groups' tables. Adds `time/learn_s`, which excludes
        fetching."""
        tables = fetch_groups(groups, timeout_s=FETCH_TIMEOUT_S)
        start = time.perf_counter()
        metrics = self._learner.update_groups(tables, step=step)
        return {**metrics, "time/learn_s": time.perf_counter() - start}

    def credits(self) -> pa.Table | None:
        return self._learner.credits()

    def set_demonstrations(self, table_refs: Sequence[ray.ObjectRef]) -> int:
        """`PolicyLearner.set_demonstrations` on references to tables."""
        return self._learner.set_demonstrations(_fetch(table_refs))

    def sft_updates(self, *, first_step: int, num_steps: int) -> dict[str, float]:
        return self._learner.sft_updates(first_step=first_step, num_steps=num_steps)

    def weights(
        self, *, dtype: Literal["float32", "bfloat16", "auto"]
    ) -> tuple[NDArray[np.uint8], dict[str, float]] | None:
        return self._learner.weights(dtype=dtype)

    def send_weights(
        self,
        engines: Sequence[ActorHandle],
        *,
        transport: WeightTransport,
        workers_per_engine: int,
        dtype: Literal["float32", "bfloat16", "auto"],
        policy_version: int,
    ) -> dict[str, float]:
        """Sends the policy's weights from this learner's GPU to the engines; the first call, and every call
        with other engines, connects to them. Rank 0 returns the engines' metrics once the weights are in use
        there, other ranks an empty dict."""
        if self._sender is None or list(engines) != self._sender_engines:
            from actors.weights.gpu_weight_sender import (
                GpuWeightSender,  # vLLM is slow to import, and only GPUs need it
            )

            keeps = self._learner.rank == 0 or transport == "ipc"  # each rank sends its own copy
            self._sender = GpuWeightSender(
                transport,
                engines=engines,
                workers_per_engine=workers_per_engine,
                weights=self._learner.full_weights(dtype=dtype, keep=keeps),
                rank=self._learner.rank,
                timeout_s=SEND_TIMEOUT_S,
            )
            self._sender_engines = list(engines)
        return self._sender.send(policy_version)

    def save(self, path: str) -> None:
        self._learner.save(path)

    def saved(self, *, wait: bool) -> SaveReport:
        return self._learner.saved(wait=wait)

    def load(self, path: str) -> None:
        self._learner.load(path)

    def export(self, folder: str) -> None:
        self._learner.export(folder)

    def get_state(self, *args: object, **kwargs: object) -> dict[str, object]:
        """No state: RLlib calls this on one rank only, which cannot gather a sharded policy. See `save` and
        `weights`."""
        return {COMPONENT_RL_MODULE: {}}

    def set_state(self, state: dict[str, object]) -> None:
        """Ignores the state; see `load`."""

    def get_checkpointable_components(self) -> list[tuple[str, MultiRLModule]]:
        return []

    def compute_loss_for_module(self, **kwargs: object) -> NoReturn:
        """RLlib's own update path, which splits batches without regard to groups: not used."""
        raise NotImplementedError("GRPOLearner learns through update_groups and sft_updates")


def _fetch(refs: Sequence[ray.ObjectRef]) -> list[pa.Table]:
    return ray.get(list(refs), timeout=FETCH_TIMEOUT_S)
