"""A run's checkpoints while they are written behind training: one at a time, named when every rank is done.

One that cannot be written is said, counted and left out; those before it stay.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.console.progress import warn
from cluster.driver.checkpoint_mirror import CheckpointMirror
from cluster.run_folder.paths import (
    LEARNER_FOLDER,
    STATE_FILE,
    BestCheckpoint,
    RunFolder,
    write_folder,
    write_whole,
)
from cluster.workers.learner_pool import LearnerPool, SaveError
from cluster.workers.learner_rpc import LearnerError
from learners.model.checkpoint import withdraw

OWN_SAVE_AFTER = 2
"""Checkpoint intervals without a checkpoint of the run, after which the algorithm saves one by itself: for
those who call `train` alone, learners can be replaced, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverState:
    """The driver's part of a checkpoint."""

    policy_version: int
    num_sft_steps: int
    cold_started: bool
    iteration: int
    """RLlib's count of `train` calls."""
    buffer: Mapping[str, Any]
    """`BufferActor.state`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    step: int
    moment: int
    """Of the learners, for `LearnerPool.rebase`."""
    score: float | None
    """On validation tasks, where it is the best so far."""


class Checkpoints:
    """Begins, settles and counts them."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        keep: int,
        learners: LearnerPool,
        forget: Callable[[int], object] = lambda before: None,
        mirror: CheckpointMirror | None = None,
    ):
        """`forget` is told which entry of the journal is the first that a checkpoint needs."""
        self._num_failed = 0
        self._forget = forget
        self._mirror = mirror
        self._folder = folder
        self._keep = keep
        self._learners = learners
        self._begun: _Begun | None = None

    @property
    def num_failed(self) -> int:
        """Checkpoints that could not be written, here or at their mirror."""
        return self._num_failed + (self._mirror.num_failed if self._mirror else 0)

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

    def write(self, folder: Path, state: DriverState) -> int:
        """Writes the driver's part, and begins with the learners': all of one moment, which is returned."""
        write_whole(folder / STATE_FILE, json.dumps(asdict(state)))
        return self._learners.save(folder / LEARNER_FOLDER)

    def write_whole(self, folder: Path, state: DriverState) -> None:
        """As `write`, whole when this returns. Raises OSError."""
        self.write(folder, state)
        try:
            self._learners.saved(wait=True)
        except SaveError as error:
            raise OSError(f"{folder}: {error}") from None

    def withdraw(self, folder: Path) -> None:
        """What lies there is no checkpoint any more."""
        withdraw(folder / LEARNER_FOLDER)

    def read(self, folder: Path) -> DriverState:
        """The driver's part of any checkpoint."""
        return DriverState(**json.loads((folder / STATE_FILE).read_text()))

    def load(self, folder: Path) -> None:
        """Brings the learners to where they were at this checkpoint."""
        self._learners.load(folder / LEARNER_FOLDER)

    def export_best(self, best: BestCheckpoint, *, policy_version: int) -> Path:
        """Writes the best checkpoint's policy as a folder that transformers and vLLM load.
        `policy_version` is the learners' own."""
        source = best.path / LEARNER_FOLDER
        if self._folder.is_best(policy_version):
            return write_folder(self._folder.best_model, self._learners.export)
        return write_folder(
            self._folder.best_model, lambda folder: self._learners.export_checkpoint(source, folder)
        )

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
        if self._mirror:
            self._mirror.copy(final, keep=self._keep)

    def keep_up(self, *, every_steps: int) -> bool:
        """Names what is written by now. Whether the last checkpoint is so far back that nobody else seems to
        make any, `every_steps` or otherwise."""
        self.settle(wait=False)
        return self._learners.num_steps_to_replay >= OWN_SAVE_AFTER * every_steps

    def close(self) -> None:
        """Names what is written already; for a run that ends, whatever state its learners are in."""
        try:
            self.settle(wait=False)
            reason = "the learners have not said that it is whole"
        except LearnerError as error:
            reason = str(error)
        if self._begun is not None:
            warn(f"the last checkpoint is not named: {reason}")
        if self._mirror:
            self._mirror.finish()

    def _tidy(self, begun: _Begun) -> None:
        """What the disk refuses here leaves the checkpoint as good as it is."""
        if begun.score is not None:
            try:
                self._folder.keep_best(begun.step, score=begun.score)
            except OSError as error:
                warn(f"checkpoint of step {begun.step} is written, but not kept as the best: {error}")
        try:
            self._folder.keep_newest(self._keep, beside=begun.step)
            self._forget(min(self._first_entry(path) for path in self._folder.newest_checkpoints))
        except OSError as error:
            warn(f"checkpoint of step {begun.step} is written, but older ones are not deleted: {error}")

    def _first_entry(self, checkpoint: Path) -> int:
        """Of the journal, that going on from this checkpoint needs."""
        state = checkpoint / STATE_FILE
        return self.read(checkpoint).buffer.get("journal", {"first": 0})["first"] if state.exists() else 0

    def _fail(self, step: int, error: Exception) -> None:
        self._num_failed += 1
        before = self._folder.latest_step
        kept = "none is on disk" if before is None else f"the one of step {before} stays"
        warn(f"checkpoint of step {step} was not written: {error}; {kept}, training goes on")
        self._folder.clear_partial()
