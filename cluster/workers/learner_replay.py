"""What the learners went through since their last whole checkpoint: taken again in this order, it makes new
learners into what the old ones were.

References and numbers only. Knows no Ray.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LearnerWork = Callable[[Any], Any]
"""What one learner is asked to do, given the learner."""
TrainingStage = Literal["sft", "grpo"]


class ReplayError(RuntimeError):
    """The history does not reach back to a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerCall:
    """One call that changed the learners."""

    stage: TrainingStage
    work: LearnerWork


class LearnerReplay:
    """The state-changing calls after a base: a checkpoint, or the untrained policy.

    The calls keep their tables alive, so that no more than `most_steps` of GRPO are kept.
    """

    def __init__(self, *, most_steps: int):
        self._most_steps = most_steps
        self._checkpoint: Path | None = None
        self._base = 0
        """Calls before the base."""
        self._first = 0
        """Calls before the first that is kept."""
        self._calls: deque[LearnerCall] = deque()
        self._demonstrations: LearnerWork | None = None

    @property
    def moment(self) -> int:
        """Calls until now: the place of a checkpoint in the history."""
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
        """Every learner has answered this call."""
        self._calls.append(call)
        self._forget_demonstrations()
        while self.num_steps > self._most_steps:
            self._drop_first()

    def set_demonstrations(self, work: LearnerWork) -> None:
        """The SFT calls to come need these, whatever checkpoint they start from."""
        self._demonstrations = work

    def rebase(self, checkpoint: Path, *, moment: int) -> None:
        """`checkpoint` holds what the learners were at `moment`, and lies there to stay."""
        self._checkpoint, self._base = checkpoint, moment
        while self._first < moment:
            self._drop_first()
        self._forget_demonstrations()

    def restart(self, checkpoint: Path) -> None:
        """The learners have loaded `checkpoint`: what was before does not count any more."""
        self._checkpoint, self._base, self._first = checkpoint, self.moment, self.moment
        self._calls.clear()

    def replay(self) -> list[LearnerWork]:
        """What makes untrained learners into those of now, in order. Raises `ReplayError`."""
        if self._first > self._base:
            raise ReplayError(f"more than {self._most_steps} steps since the last whole checkpoint")
        work: list[LearnerWork] = []
        if self._checkpoint is not None:
            path = str(self._checkpoint)
            work.append(lambda learner: learner.load(path))
        if self._demonstrations is not None:
            work.append(self._demonstrations)
        return [*work, *(call.work for call in self._calls)]

    def _forget_demonstrations(self) -> None:
        """Once GRPO has begun and no SFT call is left to be taken again."""
        if self._calls and all(call.stage == "grpo" for call in self._calls):
            self._demonstrations = None

    def _drop_first(self) -> None:
        self._calls.popleft()
        self._first += 1
