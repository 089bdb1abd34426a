"""The checkpoints of a run: a recipe, the driver's numbers and the learners' shards in one folder, written in
parallel with training. A checkpoint gets its name when every rank has written its part.

One that cannot be written is reported, counted and left out; earlier ones stay.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.console.log import warn
from cluster.driver.checkpoint_mirror import CheckpointMirror
from cluster.run_folder.atomic_files import write_folder, write_whole
from cluster.run_folder.paths import LEARNER_FOLDER, STATE_FILE, BestCheckpoint, RunFolder
from cluster.workers.learner_pool import LearnerPool, SaveError
from cluster.workers.learner_rpc import LearnerError
from learners.model.checkpoint import withdraw

RECIPE = "config.toml"
"""The resolved recipe, in every checkpoint."""
OVERDUE_INTERVALS = 2
"""Checkpoint intervals without a checkpoint after which the algorithm makes one by itself: learners can be
replaced even if the caller only calls `train`."""


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
class _PendingCheckpoint:
    step: int
    moment: int
    """Of the learners, for `LearnerPool.rebase`."""
    score: float | None
    """On validation tasks, if it is the best so far."""


class Checkpoints:
    """Writes, names, counts and reads the checkpoints of one run."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        recipe: str,
        keep: int,
        learners: LearnerPool,
        trim_log: Callable[[int], object] = lambda before: None,
        mirror: CheckpointMirror | None = None,
    ):
        """`recipe` is the resolved TOML; `trim_log` gets the first log entry that a kept checkpoint needs."""
        self._folder = folder
        self._recipe = recipe
        self._keep = keep
        self._learners = learners
        self._trim_log = trim_log
        self._mirror = mirror
        self._num_failed = 0
        self._pending: _PendingCheckpoint | None = None

    @property
    def num_failed(self) -> int:
        """Checkpoints that could not be written, here or at their mirror."""
        return self._num_failed + (self._mirror.num_failed if self._mirror else 0)

    def begin(self, state: DriverState, *, score: float | None = None) -> None:
        """Begins a checkpoint in the run folder, after the one before is complete. With a `score` it is kept
        as the best."""
        self.complete(wait=True)
        step = state.policy_version
        try:
            moment = self._write(self._folder.begin_checkpoint(step), state)
        except OSError as error:
            self._handle_failure(step, error)
            return
        self._pending = _PendingCheckpoint(step=step, moment=moment, score=score)

    def save(self, folder: Path, state: DriverState) -> None:
        """Writes a checkpoint into any folder, complete when this returns. Raises OSError."""
        self.complete(wait=True)
        withdraw(folder / LEARNER_FOLDER)  # an older one there is none while this one is written
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder, state)
        try:
            self._learners.saved(wait=True)
        except SaveError as error:
            raise OSError(f"{folder}: {error}") from None

    def read(self, folder: Path) -> DriverState:
        """The driver's part of any checkpoint."""
        return DriverState(**json.loads((folder / STATE_FILE).read_text()))

    def load(self, folder: Path) -> None:
        """Brings the learners to this checkpoint's state."""
        self._learners.load(folder / LEARNER_FOLDER)

    def export_best(self, best: BestCheckpoint, *, policy_version: int) -> Path:
        """Writes the best checkpoint's policy as a folder that transformers and vLLM load. `policy_version`
        is the learners' own."""
        export = self._learners.export
        if not self._folder.is_best(policy_version):
            export = partial(self._learners.export_checkpoint, best.path / LEARNER_FOLDER)
        return write_folder(self._folder.best_model, export)

    def complete(self, *, wait: bool) -> None:
        """Names the pending checkpoint if every rank has written its part; with `wait`, once it has."""
        if self._pending is None:
            return
        pending = self._pending
        try:
            if not self._learners.saved(wait=wait):
                return
            self._pending = None
            final = self._folder.complete_checkpoint(pending.step)
        except (OSError, SaveError) as error:
            self._pending = None
            self._handle_failure(pending.step, error)
            return
        self._learners.rebase(final / LEARNER_FOLDER, moment=pending.moment)
        self._tidy(pending)
        if self._mirror:
            self._mirror.copy(final, keep=self._keep)

    def is_overdue(self, *, every_steps: int) -> bool:
        """Whether the last complete checkpoint is so far back that the caller seems to make none, every
        `every_steps` or otherwise."""
        self.complete(wait=False)
        return self._learners.num_steps_to_replay >= OVERDUE_INTERVALS * every_steps

    def close(self) -> None:
        """Names the pending checkpoint if it is complete; for a run that ends, whatever its learners'
        state."""
        reason = "the learners have not finished writing it"
        try:
            self.complete(wait=False)
        except LearnerError as error:
            reason = str(error)
        if self._pending is not None:
            warn(f"the last checkpoint is incomplete: {reason}")
        if self._mirror:
            self._mirror.finish()

    def _write(self, folder: Path, state: DriverState) -> int:
        """Writes the driver's part, and begins the learners' part of the same moment, which is returned."""
        write_whole(folder / RECIPE, self._recipe)
        write_whole(folder / STATE_FILE, json.dumps(asdict(state)))
        return self._learners.save(folder / LEARNER_FOLDER)

    def _tidy(self, pending: _PendingCheckpoint) -> None:
        """Keeps the best, deletes old ones. If the disk refuses this, the checkpoint itself is still good."""
        if pending.score is not None:
            try:
                self._folder.keep_best(pending.step, score=pending.score)
            except OSError as error:
                warn(f"checkpoint of step {pending.step} is written, but not kept as the best: {error}")
        try:
            self._folder.keep_newest(self._keep, and_step=pending.step)
            self._trim_log(min(self._first_entry(path) for path in self._folder.newest_checkpoints))
        except OSError as error:
            warn(f"checkpoint of step {pending.step} is written, but older ones are not deleted: {error}")

    def _first_entry(self, checkpoint: Path) -> int:
        """The first log entry that resuming from this checkpoint needs."""
        state = checkpoint / STATE_FILE
        return self.read(checkpoint).buffer["journal"]["first"] if state.exists() else 0

    def _handle_failure(self, step: int, error: Exception) -> None:
        self._num_failed += 1
        before = self._folder.latest_step
        kept = "none is on disk" if before is None else f"the one of step {before} stays"
        warn(f"checkpoint of step {step} was not written: {error}; {kept}, training continues")
        self._folder.clear_partial()
