"""A run's checkpoints while they are written behind training: one at a time, named when every rank is done.

One that cannot be written is said, counted and left out; those before it stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.console import say
from cluster.learner_calls import LearnerError
from cluster.learners import Learners, SaveError
from cluster.run_folder import RunFolder

LEARNER_FOLDER = "learner"
"""The learners' part of a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    step: int
    moment: int
    """Of the learners, for `Learners.rebase`."""
    score: float | None
    """On validation tasks, where it is the best so far."""


class Checkpoints:
    """Begins, settles and counts them."""

    def __init__(self, folder: RunFolder, *, keep: int, learners: Learners):
        self.num_failed = 0
        self._folder = folder
        self._keep = keep
        self._learners = learners
        self._begun: _Begun | None = None

    def begin(self, step: int, *, write: Callable[[Path], int], score: float | None = None) -> None:
        """Has `write` fill a folder, as far as it does so at once; it returns the learners' moment. With a
        `score` the checkpoint is kept as the best."""
        self.settle(wait=True)
        try:
            moment = write(self._folder.begin_checkpoint(step))
        except OSError as error:
            self._fail(step, error)
            return
        self._begun = _Begun(step=step, moment=moment, score=score)

    def settle(self, *, wait: bool) -> None:
        """Names the checkpoint that was begun, if it is whole or once it is."""
        if self._begun is None:
            return
        begun = self._begun
        try:
            if not self._learners.saved(wait=wait):
                return
            self._begun = None
            final = self._folder.complete_checkpoint(begun.step)
        except (OSError, SaveError) as error:
            self._begun = None
            self._fail(begun.step, error)
            return
        self._learners.rebase(final / LEARNER_FOLDER, moment=begun.moment)
        self._tidy(begun)

    def close(self) -> None:
        """Names what is written already; for a run that ends, whatever state its learners are in."""
        try:
            self.settle(wait=False)
            reason = "the learners have not said that it is whole"
        except LearnerError as error:
            reason = str(error)
        if self._begun is not None:
            say(f"the last checkpoint is not named: {reason}")

    def _tidy(self, begun: _Begun) -> None:
        """What the disk refuses here leaves the checkpoint as good as it is."""
        if begun.score is not None:
            try:
                self._folder.keep_best(begun.step, score=begun.score)
            except OSError as error:
                say(f"checkpoint of step {begun.step} is written, but not kept as the best: {error}")
        try:
            self._folder.keep_newest(self._keep, beside=begun.step)
        except OSError as error:
            say(f"checkpoint of step {begun.step} is written, but older ones are not deleted: {error}")

    def _fail(self, step: int, error: Exception) -> None:
        self.num_failed += 1
        before = self._folder.latest_step
        kept = "none is on disk" if before is None else f"the one of step {before} stays"
        say(f"checkpoint of step {step} was not written: {error}; {kept}, training goes on")
        self._folder.clear_partial()
