"""The driver's hold on the learners: one call reaches every rank, one error says which rank failed and
why."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

UPDATE_TIMEOUT_S = 1800.0
"""Longest wait for one call; an optimizer step of a large policy takes minutes."""


class LearnerError(RuntimeError):
    """A learner failed; the run goes on from its last checkpoint."""


class LogprobGapError(RuntimeError):
    """Engine and learner disagree about the policy: what was sampled is not what would be trained."""


class Learners:
    """All learners of a run, as one."""

    def __init__(self, group: Any, *, num_learners: int):
        self._group = group
        self._num_learners = num_learners

    def update(self, tables: Sequence[ray.ObjectRef], *, step: int) -> dict[str, float]:
        """One GRPO step on these groups. Raises `LearnerError`."""
        refs = list(tables)
        return self._call(lambda learner: learner.update_groups(refs, step=step))[0]

    def set_demonstrations(self, tables: Sequence[ray.ObjectRef]) -> int:
        """Keeps demonstrations for `sft_updates`; returns how many samples they give."""
        refs = list(tables)
        return self._call(lambda learner: learner.set_demonstrations(refs))[0]

    def sft_updates(self, *, first_step: int, num_steps: int) -> dict[str, float]:
        """Steps of the cold start; the last one's metrics."""
        return self._call(lambda learner: learner.sft_updates(first_step=first_step, num_steps=num_steps))[0]

    def weights(self, *, dtype: str) -> tuple[ray.ObjectRef, dict[str, float]]:
        """The policy's weights in the object store, put there by the first learner."""

        def put(learner: Any) -> tuple[ray.ObjectRef, dict[str, float]] | None:
            packed = learner.weights(dtype=dtype)
            return (ray.put(packed[0]), packed[1]) if packed else None

        return next(packed for packed in self._call(put) if packed)

    def save(self, folder: Path) -> None:
        self._call(lambda learner: learner.save(str(folder)))

    def load(self, folder: Path) -> None:
        self._call(lambda learner: learner.load(str(folder)))

    def export(self, folder: Path) -> None:
        self._call(lambda learner: learner.export(str(folder)))

    def _call(self, work: Callable[[Any], Any]) -> list[Any]:
        """Every rank's answer, rank 0 first."""
        results = list(self._group.foreach_learner(work, timeout_seconds=UPDATE_TIMEOUT_S))
        for rank, result in enumerate(results):
            if not result.ok:
                raise LearnerError(f"learner {rank} failed: {result.get()}") from result.get()
        if len(results) < self._num_learners:
            raise LearnerError(
                f"{len(results)} of {self._num_learners} learners answered within {UPDATE_TIMEOUT_S:.0f} s: "
                "go on from the last checkpoint with `userrl train RUN_FOLDER`"
            )
        return [result.get() for result in results]
