"""GRPO as RLlib knows algorithms: `GRPOConfig(...).build_algo()`, then `algo.train()`.

The driver's loop is `training_step`: take whole groups, update, send weights, book, release. It holds
references, never tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from cluster.algorithm_base import StatelessAlgorithm
from cluster.algorithm_config import GRPOConfig, config_for_actors, run_of_trial
from cluster.checkpoints import Checkpoints, DriverState
from cluster.checks import check_same_run
from cluster.cold_start import SftLog, cold_start
from cluster.config import RunConfig
from cluster.console import say
from cluster.evaluate import evaluate
from cluster.groups import CALL_TIMEOUT_S, Groups
from cluster.launch import start_ray, start_services
from cluster.learners import Learners
from cluster.machine import ray_address
from cluster.policy_folder import provide_policy, reference_folder
from cluster.results import EvaluationRow, rows_as_json
from cluster.rollouts import PROBE_TIMEOUT_S, Rollouts
from cluster.run_folder import BestCheckpoint, RunFolder, write_folder
from cluster.step_metrics import Laps, age_metrics, engine_metrics, expect_agreement, step_metrics
from cluster.weight_sync import connect
from simulators.gauges import alarms
from simulators.task import Split

CLOSE_TIMEOUT_S = 20.0
"""Longest wait of a run that ends for weights on their way."""
MOST_INTERVALS_KEPT = 4
"""Checkpoint intervals whose groups are kept for learners that take the place of others."""


class GRPO(StatelessAlgorithm):
    """Trains one run. `train()` is one GRPO step, after the cold start."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig(cls)

    def setup(self, config: AlgorithmConfig) -> None:
        """Starts everything, and gives the engines the learners' weights before anything is sampled."""
        run = cast(GRPOConfig, self.config).resolved()
        self.run: RunConfig = run if self._trial_info is None else run_of_trial(run, self.trial_id)
        check_same_run(self.run)
        self.folder = RunFolder(RunFolder.of(self.run).path.resolve())
        """Absolute: actors write into it from wherever they run."""
        self.folder.create(self.run)
        self.num_sft_steps = 0
        """Optimizer steps of the cold start behind the policy."""
        self.cold_started = False
        """Whether the cold start is done."""
        self.policy_version = 0
        """Optimizer steps of GRPO behind the policy."""
        self.step_metrics: dict[str, float] = {}
        """The last step's numbers, keys `room/thing/stat`."""
        self.step_dialogues: list[pa.Table] = []
        """Some dialogues of the last step, text without tokens."""
        self.built_from = self.config
        started_ray = start_ray(ray_address(self.run))
        policy_folder = provide_policy(self.run, self.folder)
        self.services = start_services(
            self.run, policy_folder=policy_folder, run_folder=self.folder.path, started_ray=started_ray
        )
        self.config = config_for_actors(
            cast(GRPOConfig, self.config),
            run=self.run,
            rollout_setup=self.services.rollout_setup,
            reference_folder=reference_folder(self.run, self.folder),
        )
        super().setup(self.config)
        self.learners = Learners(
            self.learner_group,
            most_steps=MOST_INTERVALS_KEPT * self.run.checkpoint.every_steps,
            replaced=lambda group: setattr(self, "learner_group", group),
        )
        self.weights = connect(self.learners, self.services.engines, config=self.run.engine)
        self.checkpoints = Checkpoints(self.folder, keep=self.run.checkpoint.keep, learners=self.learners)
        self.rollouts = Rollouts(
            self.env_runner_group,
            engines=self.services.engines,
            restore=lambda: self.restore_env_runners(self.env_runner_group),
            group_timeout_s=self.run.rollout.group_timeout_s,
        )
        self.groups = Groups(
            self.services.buffer, run=self.run, rollouts=self.rollouts, archive=self.folder.trajectories
        )
        self._send_weights()

    def training_step(self) -> None:
        """One GRPO step: consumes whole scored groups, sends the next policy version to the engines. It
        arrives beside the next step, unless training is synchronous."""
        self.cold_start()
        laps = Laps()
        groups = self.groups.take(policy_version=self.policy_version, check=self.weights.check)
        laps.end("wait")
        dialogues = self.groups.dialogues(groups)
        update = self.learners.update(
            [group.payload for group in groups], step=self.policy_version, meanwhile=self.groups.keep_working
        )
        laps.end("update")
        self.policy_version += 1
        self._finish_sync()  # of the version before
        laps.end("sync")
        live = self.weights.send(self.policy_version)
        laps.end("weights")
        self.groups.keep_working()
        settled = self.groups.book(groups, step=self.policy_version)
        self.groups.release(groups, policy_version=self.policy_version, live=live)
        laps.end("report")
        if self.run.buffer.max_off_policy_steps == 0:
            self._finish_sync()
            laps.end("sync")
        if self.checkpoints.keep_up(every_steps=self.run.checkpoint.every_steps):
            self.begin_checkpoint()
        self.step_dialogues = ray.get(dialogues, timeout=CALL_TIMEOUT_S)
        state = {**self.groups.metrics(), **engine_metrics(self.rollouts.engine_usage())}
        laps.end("report")
        self._report(
            {
                **step_metrics(laps.metrics(), update=update, settled=settled),
                **age_metrics([group.summary for group in groups], policy_version=self.policy_version - 1),
                **self.weights.metrics,
                **state,
                "learner/rebuilds": float(self.learners.num_rebuilds),
                "checkpoint/failures": float(self.checkpoints.num_failed),
            }
        )

    def cold_start(self, log: SftLog = lambda step, metrics: None) -> None:
        """The SFT stage; nothing where it is done. `log` may raise to stop it: a checkpoint goes on."""
        if self.cold_started:
            return

        def note(step: int, metrics: Mapping[str, float]) -> None:
            self.num_sft_steps = step
            self.checkpoints.settle(wait=False)
            log(step, metrics)

        cold_start(
            self.run,
            learners=self.learners,
            rollouts=self.rollouts,
            policy_folder=self.services.rollout_setup.policy_folder,
            done=self.num_sft_steps,
            log=note,
            save=self.begin_checkpoint,
        )
        self.cold_started = True
        self._send_weights()

    def evaluate(self, parallel_train_future: object = None) -> dict[str, Any]:
        """Scores the policy on test tasks, as RLlib asks for it: `{"rows": [...]}` as in evaluation.json."""
        return dict(rows_as_json(self.evaluate_stage(f"step-{self.policy_version:05d}")))

    def evaluate_stage(self, stage: str, *, split: Split = "test") -> list[EvaluationRow]:
        """Scores the policy on tasks that it is not trained on; `stage` names the rows and the file of their
        dialogues."""
        self._finish_sync()
        return evaluate(
            self.run, rollouts=self.rollouts, split=split, stage=stage, archive=self.folder.trajectories
        )

    def begin_checkpoint(self, *, score: float | None = None) -> None:
        """Begins a checkpoint in the run folder, which is written behind training. With a `score` on
        validation tasks it is kept as the best."""

        def write(folder: Path) -> int:
            super(GRPO, self).save_to_path(folder)
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
        """Goes on from a checkpoint: weights, optimizer, task order, ledger. Raises RuntimeError where groups
        were ordered already."""
        path = Path(path).resolve()
        state = self.checkpoints.read(path)
        self._finish_sync()
        self.groups.expect_unordered()
        self.checkpoints.load(path)  # before the archive goes back: it may refuse
        self.groups.restore(state.buffer, step=state.policy_version)
        self.policy_version, self._iteration = state.policy_version, state.iteration
        self.num_sft_steps, self.cold_started = state.num_sft_steps, state.cold_started
        self._send_weights()

    def begin_anew(self) -> None:
        """No checkpoint is behind this run: whatever rows an earlier life of it left are of groups that come
        again."""
        self.groups.restore(self.groups.state(), step=0)

    def write_model(self) -> Path:
        """Writes the policy as a folder that transformers and vLLM load."""
        return write_folder(self.folder.model, self.learners.export)

    def write_best_model(self, best: BestCheckpoint) -> Path:
        """Writes the policy of the best checkpoint in the same form."""
        return self.checkpoints.export_best(best, policy_version=self.policy_version)

    def cleanup(self) -> None:
        """Ends every process of the run; again, and after an unfinished `setup`, nothing."""
        if not hasattr(self, "services"):
            return
        if hasattr(self, "checkpoints"):
            self.checkpoints.close()
            self.weights.close(timeout_s=CLOSE_TIMEOUT_S)
        super().cleanup()
        self.services.stop()
        del self.services

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Restarted rollout actors take part again. They hold no weights, so nothing is sent to them."""
        return env_runner_group.probe_unhealthy_env_runners(timeout_seconds=PROBE_TIMEOUT_S)

    def _send_weights(self) -> None:
        """The policy version is live in every engine when this returns: from here on they could be busy."""
        self.weights.send(self.policy_version)
        self._finish_sync()
        self.rollouts.engine_usage()

    def _finish_sync(self) -> None:
        """Waits until the version that was sent is live in every engine, and its step's slots are free."""
        self.weights.finish()
        self.groups.finish_release()

    def _report(self, metrics: dict[str, float]) -> None:
        """Keeps and logs the step's numbers. Raises where engine and learner disagree."""
        self.step_metrics = metrics
        for key, value in metrics.items():
            self.metrics.log_value(key, value, reduce="item")
        for line in alarms(metrics, self.run.simulator.alarms):
            say(f"simulated users: {line}")
        expect_agreement(metrics, max_logprob_gap=self.run.learner.max_logprob_gap)
