"""Replay log of the learners: the state-changing calls since their last complete checkpoint. Repeated in
order, they bring new learners to the state of the old ones.

Holds references and numbers only. Knows no Ray.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LearnerWork = Callable[[Any], Any]
"""A call's function, applied to each learner."""
TrainingStage = Literal["sft", "grpo"]


class ReplayError(RuntimeError):
    """The log does not reach back to a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerCall:
    """One call that changed the learners."""

    stage: TrainingStage
    work: LearnerWork


class LearnerReplay:
    """The state-changing calls after a base: a checkpoint, or the untrained policy.

    The calls keep their tables alive, so at most `max_steps` GRPO steps are kept.
    """

    def __init__(self, *, max_steps: int):
        self._max_steps = max_steps
        self._checkpoint: Path | None = None
        self._base = 0
        """Number of calls before the base."""
        self._first = 0
        """Number of calls before the first that is kept."""
        self._calls: deque[LearnerCall] = deque()
        self._demonstrations: LearnerWork | None = None

    @property
    def moment(self) -> int:
        """Number of calls so far: a checkpoint's position in the log."""
        return self._first + len(self._calls)

    @property
    def num_steps(self) -> int:
        """GRPO steps since the base that are kept."""
        return sum(call.stage == "grpo" for call in self._calls)

    @property
    def checkpoint(self) -> Path | None:
        """The base; None for the untrained policy."""
        return self._checkpoint

    def add(self, call: LearnerCall) -> None:
        """Appends a call that every learner has answered."""
        self._calls.append(call)
        self._drop_demonstrations()
        while self.num_steps > self._max_steps:
            self._drop_first()

    def set_demonstrations(self, work: LearnerWork) -> None:
        """Later SFT calls need these, whatever checkpoint the replay starts from."""
        self._demonstrations = work

    def rebase(self, checkpoint: Path, *, moment: int) -> None:
        """`checkpoint` holds the learners' state at `moment`, and stays where it is."""
        self._checkpoint, self._base = checkpoint, moment
        while self._first < moment:
            self._drop_first()
        self._drop_demonstrations()

    def restart(self, checkpoint: Path) -> None:
        """The learners have loaded `checkpoint`: earlier calls no longer count."""
        self._checkpoint, self._base, self._first = checkpoint, self.moment, self.moment
        self._calls.clear()

    def replay(self) -> list[LearnerWork]:
        """The calls that bring untrained learners to the current state, in order. Raises `ReplayError`."""
        if self._first > self._base:
            raise ReplayError(f"more than {self._max_steps} steps since the last complete checkpoint")
        work: list[LearnerWork] = []
        if self._checkpoint is not None:
            path = str(self._checkpoint)
            work.append(lambda learner: learner.load(path))
        if self._demonstrations is not None:
            work.append(self._demonstrations)
        return [*work, *(call.work for call in self._calls)]

    def _drop_demonstrations(self) -> None:
        """Once GRPO has begun and no SFT call is left to replay."""
        if self._calls and all(call.stage == "grpo" for call in self._calls):
            self._demonstrations = None

    def _drop_first(self) -> None:
        self._calls.popleft()
        self._first += 1
