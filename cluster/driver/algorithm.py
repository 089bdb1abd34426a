"""GRPO as RLlib knows algorithms: `GRPOConfig(...).build_algo()`, then `algo.train()`.

The driver's loop is `training_step`: take whole groups, update, send weights, book, release. It holds
references, never tokens.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from actors.trajectory import GroupSummary
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.progress import setting_up
from cluster.driver.algorithm_config import GRPOConfig, config_for_actors, run_of_trial
from cluster.driver.checkpoint_mirror import mirror_of
from cluster.driver.checkpoints import Checkpoints
from cluster.driver.saved_algorithm import CheckpointedAlgorithm
from cluster.driver.tune_tracking import TrackedAlgorithm
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.results import EvaluationRow, rows_as_json
from cluster.preflight.checks import check_same_run
from cluster.ray_cluster.placement import ray_address
from cluster.ray_cluster.simulator_service import scale_simulators
from cluster.ray_cluster.start import start_ray
from cluster.run_folder.paths import RunFolder
from cluster.sft.cold_start import SftLog, cold_start
from cluster.tracking.prometheus import MetricsEndpoint
from cluster.tracking.step_metrics import (
    StageTimer,
    age_metrics,
    engine_metrics,
    expect_agreement,
    step_metrics,
)
from cluster.workers.autoscaler import Autoscaler
from cluster.workers.buffer_client import BufferClient
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.policy_source import provide_policy, reference_folder
from cluster.workers.restart import cleanup_on_failure
from cluster.workers.rollout_pool import PROBE_TIMEOUT_S, RolloutPool
from cluster.workers.services import start_services
from cluster.workers.weight_sync import connect
from learners.buffer.log.segments import LogError, check_format
from simulators.task import Split

CLOSE_TIMEOUT_S = 20.0
"""Longest wait of a run that ends for weights on their way."""
MOST_INTERVALS_KEPT = 4
"""Checkpoint intervals whose groups are kept for learners that take the place of others."""
SETUP_PARTS = ("Ray", "the policy", "users, buffer", "learners, rollout actors", "engines", "weights")
"""Of `setup`, for people who wait for it."""


class GRPO(TrackedAlgorithm, CheckpointedAlgorithm):
    """Trains one run. `train()` is one GRPO step, after the cold start."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig(cls)

    def setup(self, config: AlgorithmConfig) -> None:
        """Starts everything, and gives the engines the learners' weights before anything is sampled. Raises
        `LostSetupError` where a process has died meanwhile; whatever it raises, nothing is left of it."""
        run = cast(GRPOConfig, self.config).resolved()
        self.run: RunConfig = run if self.trial is None else run_of_trial(run, self.trial.trial_id)
        check_same_run(self.run)
        self.folder = RunFolder(RunFolder.of(self.run).path.resolve())
        """Absolute: actors write into it from wherever they run."""
        try:
            check_format(self.folder.journal)
        except LogError as error:
            raise BadInput(str(error)) from None
        self.folder.create(self.run)
        self.policy_version, self.num_sft_steps, self.cold_started = 0, 0, False
        self.step_metrics: dict[str, float] = {}
        """The last step's numbers, keys `room/thing/stat`."""
        self.built_from = self.config
        with cleanup_on_failure(self.cleanup):
            self._start()

    def _start(self) -> None:
        setting_up("Ray")
        started_ray = start_ray(ray_address(self.run), nodes=self.run.ray.nodes)
        setting_up("the policy")
        policy_folder = provide_policy(self.run, self.folder)
        setting_up("users, buffer")
        self.services = start_services(
            self.run, policy_folder=policy_folder, run_folder=self.folder.path, started_ray=started_ray
        )
        self.config = config_for_actors(
            cast(GRPOConfig, self.config),
            run=self.run,
            rollout_setup=self.services.rollout_setup,
            reference_folder=reference_folder(self.run, self.folder),
        )
        setting_up("learners, rollout actors")
        super().setup(self.config)
        setting_up("engines")
        self.services.wait()
        self.learners = LearnerPool(
            self.learner_group,
            most_steps=MOST_INTERVALS_KEPT * self.run.checkpoint.every_steps,
            replaced=lambda group: setattr(self, "learner_group", group),
        )
        self.weights = connect(self.learners, self.services.engines, config=self.run.engine)
        self.rollouts = RolloutPool(
            self.env_runner_group,
            engines=self.services.engines,
            restore=lambda: self.restore_env_runners(self.env_runner_group),
            group_timeout_s=self.run.rollout.group_timeout_s,
        )
        self.groups = BufferClient(
            self.services.buffer, run=self.run, rollouts=self.rollouts, archive=self.folder.trajectories
        )
        self.rollouts.beside = self._look_beside
        self.checkpoints = Checkpoints(
            self.folder,
            keep=self.run.checkpoint.keep,
            learners=self.learners,
            forget=lambda before: self.groups.forget_journal(before=before),
            mirror=mirror_of(self.run),
        )
        self.scaling = Autoscaler(
            self.run,
            self.folder,
            set_sizes={
                "rollouts": self.rollouts.scale,
                "engines": self.services.engines.scale,
                "simulators": partial(scale_simulators, self.run),
            },
        )
        self.endpoint = MetricsEndpoint(
            run=self.run.run.name,
            targets=self.folder.scrape_targets,
            live=lambda: {**self.groups.metrics(), **self._sizes()},
        )
        setting_up("weights")
        self._send_weights()

    def training_step(self) -> None:
        """One GRPO step: consumes whole scored groups, sends the next policy version to the engines. It
        arrives beside the next step, unless training is synchronous."""
        self.cold_start()
        laps = StageTimer()
        groups = self.groups.take(policy_version=self.policy_version, check=self._keep_up)
        laps.end("wait")
        update, credits = self.learners.update(
            [group.payload for group in groups], step=self.policy_version, meanwhile=self.groups.keep_working
        )
        laps.end("update")
        self.policy_version += 1
        self._finish_sync()  # of the version before
        laps.end("sync")
        live = self.weights.send(self.policy_version)
        laps.end("weights")
        self.groups.keep_working()
        settled = self.groups.book(groups, step=self.policy_version, credits=credits)
        self.groups.release(groups, policy_version=self.policy_version, live=live)
        laps.end("report")
        if self.run.buffer.max_off_policy_steps == 0:
            self._finish_sync()
            laps.end("sync")
        if self.checkpoints.keep_up(every_steps=self.run.checkpoint.every_steps):
            self.begin_checkpoint()
        state = {**self.groups.metrics(), **engine_metrics(self.rollouts.engine_usage())}
        laps.end("report")
        self._report(
            {
                **step_metrics(laps.metrics(), update=update, settled=settled),
                **age_metrics([group.summary for group in groups], policy_version=self.policy_version - 1),
                **self.weights.metrics,
                **state,
                **self._sizes(),
                "learner/rebuilds": float(self.learners.num_rebuilds),
                "checkpoint/failures": float(self.checkpoints.num_failed),
            },
            settled=settled,
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
            look=self._look_around,
            give=self.weights.check,
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
        rows = evaluate(
            self.run, rollouts=self.rollouts, split=split, stage=stage, archive=self.folder.trajectories
        )
        self.endpoint.note_scores(rows)
        return rows

    def cleanup(self) -> None:
        """Ends every process of the run; again, and after an unfinished `setup`, nothing."""
        if not hasattr(self, "services"):
            return
        if hasattr(self, "endpoint"):
            self.endpoint.close()
        if hasattr(self, "checkpoints"):
            self.checkpoints.close()
            self.weights.close(timeout_s=CLOSE_TIMEOUT_S)
        super().cleanup()
        self.services.stop()
        del self.services

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Restarted rollout actors take part again. They hold no weights, so nothing is sent to them."""
        return env_runner_group.probe_unhealthy_env_runners(timeout_seconds=PROBE_TIMEOUT_S)

    def _look_around(self) -> None:
        """While learners work and nobody plays."""
        self.rollouts.look()
        self.groups.expect_buffer()

    def _look_beside(self) -> None:
        """While dialogues are played that no step waits for."""
        self.learners.look()
        self.groups.expect_buffer()

    def _keep_up(self) -> None:
        """While groups are waited for. Raises where waiting is in vain."""
        self.weights.check()
        self.scaling.look()

    def _sizes(self) -> dict[str, float]:
        """How many processes there are just now, and how many engines were replaced so far."""
        return {
            "rollout/num_actors": float(self.rollouts.crew.num_here),
            "engine/num_serving": float(self.services.engines.num_serving),
            "engine/num_lost": float(self.services.engines.num_lost),
        }

    def _send_weights(self) -> None:
        """The policy version is live in every engine when this returns: from here on they could be busy."""
        self.weights.send(self.policy_version)
        self._finish_sync()
        self.rollouts.engine_usage()

    def _finish_sync(self) -> None:
        """Waits until the version that was sent is live in every engine, and its step's slots are free."""
        self.weights.finish()
        self.groups.finish_release()

    def _report(self, metrics: dict[str, float], *, settled: Sequence[GroupSummary]) -> None:
        """Keeps and logs the step's numbers. Raises where engine and learner disagree."""
        self.step_metrics = metrics
        self.endpoint.note_step(self.policy_version, metrics, settled)
        for key, value in metrics.items():
            self.metrics.log_value(key, value, reduce="item")
        is_settled = self.rollouts.crew.is_settled and self.services.engines.is_settled
        self.scaling.note(metrics, is_settled=is_settled)
        expect_agreement(metrics, max_logprob_gap=self.run.learner.max_logprob_gap)
