"""The part of an algorithm that RLlib calls checkpointable: it is written down, and goes on from there."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from cluster.config.run_config import RunConfig
from cluster.driver.checkpoints import Checkpoints, DriverState
from cluster.driver.rllib_checkpoints import StatelessAlgorithm
from cluster.run_folder.paths import BestCheckpoint, RunFolder, write_folder
from cluster.workers.buffer_client import BufferClient
from cluster.workers.learner_pool import LearnerPool


class CheckpointedAlgorithm(StatelessAlgorithm):
    """Checkpoints in the run folder. Its parts are made by who inherits from it."""

    run: RunConfig
    folder: RunFolder
    learners: LearnerPool
    groups: BufferClient
    checkpoints: Checkpoints
    policy_version: int
    """Optimizer steps of GRPO behind the policy."""
    num_sft_steps: int
    """Optimizer steps of the cold start behind the policy."""
    cold_started: bool
    """Whether the cold start is done."""

    def begin_checkpoint(self, *, score: float | None = None) -> None:
        """Begins a checkpoint in the run folder, which is written behind training. With a `score` on
        validation tasks it is kept as the best."""

        def write(folder: Path) -> int:
            super(CheckpointedAlgorithm, self).save_to_path(folder)
            return self.checkpoints.write(folder, self._driver_state())

        self.checkpoints.begin(self.policy_version, write=write, score=score)

    def finish_checkpoint(self) -> None:
        """Waits for the checkpoint that was begun; one that fails is said and counted."""
        self.checkpoints.settle(wait=True)

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        """Writes a checkpoint, whole when this returns: the learners' shards and the driver's few numbers.
        Any number of learners can go on from it. Raises OSError."""
        self.finish_checkpoint()
        if path is not None:
            self.checkpoints.withdraw(Path(path))
        # Absolute, since RLlib hands the path to pyarrow, which takes a relative one for a URI.
        folder = Path(super().save_to_path(Path(path).resolve() if path else None, **kwargs))
        self.checkpoints.write_whole(folder, self._driver_state())
        return str(folder)

    def _driver_state(self) -> DriverState:
        return DriverState(
            policy_version=self.policy_version,
            num_sft_steps=self.num_sft_steps,
            cold_started=self.cold_started,
            iteration=self.iteration,
            buffer=self.groups.state(),
        )

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Goes on from a checkpoint: weights, optimizer, task order, ledger. What came after it is done
        anew. Raises RuntimeError where groups were ordered already."""
        self._restore(Path(path).resolve(), redo=False)

    def go_on(self) -> int:
        """Goes on where the run was when it was stopped or killed: from its newest checkpoint, with the steps
        that had begun since, which are taken again on the same groups as `train` is called. How many of them
        there are; -1 where the journal is lost."""
        if self.folder.latest_step is None:
            # A cold start that is done anew gives other weights than those that sampled what is recorded.
            return self.groups.restore(None, step=0, redo=not self.run.sft.has_sources)
        return self._restore(self.folder.checkpoint(self.folder.latest_step), redo=True)

    def _restore(self, path: Path, *, redo: bool) -> int:
        state = self.checkpoints.read(path)
        self._finish_sync()
        self.groups.expect_unordered()
        self.checkpoints.load(path)  # before the archive goes back: it may refuse
        num_steps = self.groups.restore(state.buffer, step=state.policy_version, redo=redo)
        self.policy_version, self._iteration = state.policy_version, state.iteration
        self.num_sft_steps, self.cold_started = state.num_sft_steps, state.cold_started
        self._send_weights()
        return num_steps

    def write_model(self) -> Path:
        """Writes the policy as a folder that transformers and vLLM load."""
        return write_folder(self.folder.model, self.learners.export)

    def write_best_model(self, best: BestCheckpoint) -> Path:
        """Writes the policy of the best checkpoint in the same form."""
        return self.checkpoints.export_best(best, policy_version=self.policy_version)

    @abstractmethod
    def _send_weights(self) -> None:
        """The policy version is live in every engine when this returns."""

    @abstractmethod
    def _finish_sync(self) -> None:
        """Waits for weights on their way."""
