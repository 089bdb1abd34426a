"""GRPO as an RLlib algorithm: `GRPOConfig(...).build_algo()`, then `algo.train()` for each step.

    simulated users (Serve)     +---------- engines (vLLM) <-- weights ---- WeightSync <-- weights ---+
            ^                   |               ^                                                     |
            | replies           | completions   | prompts                                             |
            v                   v               |                                                     |
        rollout actors <--------+---------------+                                                     |
            ^     |                                                                                   |
     orders |     | scored groups: table in the object store, summary in the call                     |
            |     v                                                                                   |
        buffer (log, ledger, archive) -- whole groups --> driver (`training_step`) -- references --> learners
            ^                                                |
            +------- mark_trained, release <-----------------+

rollout actors: consume orders, completions and replies; wait for engines and users; produce scored groups of
    `group_size` dialogues; are unblocked by a free slot in the buffer.
buffer: consumes tasks and scored groups; waits for `groups_per_step` groups that are young enough; produces
    one step's groups; is unblocked by `release`, which frees their slots and so bounds the age of groups.
learners: consume groups by reference and fetch the tables themselves; wait for the driver; produce the next
    weights and every turn's credit.
weight sync: consumes a policy version; waits for the version before and the learners' packing; produces live
    weights in every engine; is unblocked by the engines' answers, in parallel with the next step.
driver: consumes whole groups, by reference, never tokens; waits for groups, then for learners; produces one
    step's metrics. Each wait ticks the Supervisor, which replaces dead processes. In synchronous training
    (`max_off_policy_steps = 0`) it also waits for the weights.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.progress import begin_setup_part
from cluster.driver.algorithm_config import RunAlgorithmConfig, config_for_actors, run_of_trial
from cluster.driver.checkpoints import DriverState
from cluster.driver.rllib_checkpoints import PickleFreeAlgorithm
from cluster.driver.run_parts import RunParts
from cluster.driver.tune_tracking import TrialTracking
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.results import EvaluationRow, rows_as_json
from cluster.preflight.checks import check_same_run
from cluster.ray_cluster.placement import ray_address
from cluster.ray_cluster.start import start_ray
from cluster.run_folder.atomic_files import write_folder
from cluster.run_folder.paths import BestCheckpoint, RunFolder
from cluster.sft.cold_start import SftLog, cold_start
from cluster.tracking.step_metrics import (
    StageTimer,
    age_metrics,
    engine_metrics,
    require_agreement,
    step_metrics,
)
from cluster.workers.policy_source import provide_policy, reference_folder
from cluster.workers.restart import cleanup_on_failure
from cluster.workers.rollout_pool import PROBE_TIMEOUT_S
from cluster.workers.services import start_services
from learners.buffer.log.segments import LogError, check_format
from simulators.task import Split

SETUP_PARTS = ("Ray", "the policy", "users, buffer", "learners, rollout actors", "engines", "weights")
"""Parts of `setup`, for its progress line."""


class GRPO(PickleFreeAlgorithm):
    """Trains one run. `train()` is one GRPO step; the first one runs the cold start before it."""

    def __init__(self, config: Any = None, *args: Any, **kwargs: Any):
        self._trial = TrialTracking.of(config)  # RLlib drops Tune's entry when it resolves the config
        self._running = ExitStack()
        """Ends what was started, in reverse order."""
        super().__init__(config, *args, **kwargs)

    def setup(self, config: AlgorithmConfig) -> None:
        """Starts every process, and brings the learners' weights to the engines. Raises `LostSetupError` if a
        process died during it; on any error nothing is left running."""
        run = cast(RunAlgorithmConfig, self.config).resolved()
        self.run: RunConfig = run_of_trial(run, self._trial.trial_id) if self._trial else run
        check_same_run(self.run)
        self.folder = RunFolder(RunFolder.of(self.run).path.resolve())
        """Absolute: actors with other working folders write into it."""
        try:
            check_format(self.folder.journal)
        except LogError as error:
            raise BadInput(str(error)) from None
        self.folder.create(self.run)
        self.policy_version, self.num_sft_steps, self.cold_started = 0, 0, False
        """Optimizer steps of GRPO and of SFT behind the policy, and whether SFT is done."""
        self.step_metrics: dict[str, float] = {}
        """The last step's metrics, keys `room/thing/stat`."""
        with cleanup_on_failure(self.cleanup):
            self._start_processes(recipe=run.to_toml())
            begin_setup_part("weights")
            self.parts.send_weights(self.policy_version)

    def training_step(self) -> None:
        """One GRPO step. Its weights are live in the engines at the end of the next step, or of this one if
        training is synchronous. Raises if engine and learner disagree."""
        self.cold_start()
        parts, laps = self.parts, StageTimer()
        groups = parts.buffer.take(policy_version=self.policy_version, supervisor=parts.supervisor)
        laps.end("wait")
        payloads = [group.payload for group in groups]
        update, credits = parts.learners.update(
            payloads, step=self.policy_version, supervisor=parts.supervisor
        )
        laps.end("update")
        self.policy_version += 1
        parts.finish_sync()  # of the version before
        laps.end("sync")
        live = parts.weights.send(self.policy_version)
        laps.end("weights")
        parts.supervisor.tick("update")
        settled = parts.buffer.mark_trained(groups, step=self.policy_version, credits=credits)
        parts.buffer.release(groups, policy_version=self.policy_version, live=live)
        laps.end("report")
        if self.run.buffer.max_off_policy_steps == 0:
            parts.finish_sync()
            laps.end("sync")
        if parts.checkpoints.is_overdue(every_steps=self.run.checkpoint.every_steps):
            self.begin_checkpoint()
        state = {**parts.buffer.metrics(), **engine_metrics(parts.services.engines.usage())}
        laps.end("report")
        self.step_metrics = {
            **step_metrics(laps.metrics(), update=update, settled=settled),
            **age_metrics([group.summary for group in groups], policy_version=self.policy_version - 1),
            **parts.weights.metrics,
            **state,
            **parts.process_counts(),
            "learner/rebuilds": float(parts.learners.num_rebuilds),
            "checkpoint/failures": float(parts.checkpoints.num_failed),
        }
        parts.endpoint.note_step(self.policy_version, self.step_metrics, settled)
        for key, value in self.step_metrics.items():
            self.metrics.log_value(key, value, reduce="item")
        parts.autoscaler.adapt(self.step_metrics, is_stable=parts.is_stable)
        require_agreement(self.step_metrics, max_logprob_gap=self.run.learner.max_logprob_gap)

    def cold_start(self, log: SftLog = lambda step, metrics: None) -> None:
        """The SFT stage, if it is not done yet. `log` may raise to stop it; a checkpoint resumes there."""
        if self.cold_started:
            return

        def note(step: int, metrics: Mapping[str, float]) -> None:
            self.num_sft_steps = step
            self.parts.checkpoints.complete(wait=False)
            log(step, metrics)

        cold_start(
            self.run,
            learners=self.parts.learners,
            player=self.parts.player,
            supervisor=self.parts.supervisor,
            policy_folder=self.parts.services.rollout_setup.policy_folder,
            done=self.num_sft_steps,
            log=note,
            save=self.begin_checkpoint,
        )
        self.cold_started = True
        self.parts.send_weights(self.policy_version)

    def evaluate(self, parallel_train_future: object = None) -> dict[str, Any]:
        """RLlib's evaluation: scores the policy on test tasks, `{"rows": [...]}` as in evaluation.json."""
        return dict(rows_as_json(self.evaluate_stage(f"step-{self.policy_version:05d}")))

    def evaluate_stage(self, stage: str, *, split: Split = "test") -> list[EvaluationRow]:
        """Scores the policy on tasks that it is not trained on; `stage` names the rows and the file of their
        dialogues."""
        self.parts.finish_sync()
        rows = evaluate(
            self.run, player=self.parts.player, split=split, stage=stage, archive=self.folder.trajectories
        )
        self.parts.endpoint.note_scores(rows)
        return rows

    def begin_checkpoint(self, *, score: float | None = None) -> None:
        """Begins a checkpoint in the run folder, written in parallel with training. With a `score` on
        validation tasks it is kept as the best."""
        self.parts.checkpoints.begin(self._state(), score=score)

    def finish_checkpoint(self) -> None:
        """Waits for the pending checkpoint; one that fails is reported and counted."""
        self.parts.checkpoints.complete(wait=True)

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        """Writes a checkpoint, complete when this returns, into a folder, a new one if `path` is None. Any
        number of learners can resume from it. Raises OSError."""
        folder = Path(path or mkdtemp(prefix="userrl-")).resolve()
        self.parts.checkpoints.save(folder, self._state())
        return str(folder)

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Resumes from a checkpoint: weights, optimizer, task order, ledger; later steps are repeated.
        Raises RuntimeError if groups were ordered already."""
        self._restore(Path(path).resolve(), replay=False)

    def resume(self) -> int:
        """Resumes a stopped or killed run from its newest checkpoint. The steps that had begun since are
        repeated on the same groups as `train` is called: returns how many, -1 if the log does not reach
        back."""
        if self.folder.latest_step is None:
            # A repeated cold start gives other weights than those that sampled what is in the log.
            return self.parts.buffer.restore(None, step=0, replay=not self.run.sft.has_sources)
        return self._restore(self.folder.checkpoint(self.folder.latest_step), replay=True)

    def write_model(self) -> Path:
        """Writes the policy as a folder that transformers and vLLM load."""
        return write_folder(self.folder.model, self.parts.learners.export)

    def write_best_model(self, best: BestCheckpoint) -> Path:
        """Writes the policy of the best checkpoint in the same form."""
        return self.parts.checkpoints.export_best(best, policy_version=self.policy_version)

    def log_result(self, result: dict[str, Any]) -> None:
        """Called by Tune's `train` after each step."""
        super().log_result(result)
        if self._trial:
            self._trial.log_step(
                self.policy_version, metrics=self.step_metrics, folder=self.folder, run=self.run
            )

    def cleanup(self) -> None:
        """Ends every process of the run; does nothing the second time."""
        self._running.close()

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """RLlib's hook after a step: restarted rollout actors hold no weights, so none are sent to them."""
        return env_runner_group.probe_unhealthy_env_runners(timeout_seconds=PROBE_TIMEOUT_S)

    def _start_processes(self, *, recipe: str) -> None:
        if self._trial:
            self._running.callback(self._trial.close)
        begin_setup_part("Ray")
        started_ray = start_ray(ray_address(self.run), nodes=self.run.ray.nodes)
        begin_setup_part("the policy")
        policy_folder = provide_policy(self.run, self.folder)
        begin_setup_part("users, buffer")
        services = start_services(
            self.run, policy_folder=policy_folder, run_folder=self.folder.path, started_ray=started_ray
        )
        self._running.callback(services.stop)
        self.config = config_for_actors(
            cast(RunAlgorithmConfig, self.config),
            run=self.run,
            rollout_setup=services.rollout_setup,
            reference_folder=reference_folder(self.run, self.folder),
        )
        begin_setup_part("learners, rollout actors")
        self._running.callback(super().cleanup)
        super().setup(self.config)
        begin_setup_part("engines")
        services.wait()
        self.parts = RunParts(
            self.run,
            self.folder,
            recipe=recipe,
            services=services,
            env_runners=self.env_runner_group,
            learner_group=self.learner_group,
            on_rebuild=lambda group: setattr(self, "learner_group", group),
            running=self._running,
        )

    def _state(self) -> DriverState:
        return DriverState(
            policy_version=self.policy_version,
            num_sft_steps=self.num_sft_steps,
            cold_started=self.cold_started,
            iteration=self.iteration,
            buffer=self.parts.buffer.state(),
        )

    def _restore(self, folder: Path, *, replay: bool) -> int:
        parts, state = self.parts, self.parts.checkpoints.read(folder)
        parts.finish_sync()
        parts.buffer.require_unissued()
        parts.checkpoints.load(folder)  # before the archive is rolled back: it may raise
        num_steps = parts.buffer.restore(state.buffer, step=state.policy_version, replay=replay)
        self.policy_version, self._iteration = state.policy_version, state.iteration
        self.num_sft_steps, self.cold_started = state.num_sft_steps, state.cold_started
        parts.send_weights(self.policy_version)
        return num_steps


class GRPOConfig(RunAlgorithmConfig):
    """The recipe of a GRPO run.

    Example: `GRPOConfig().environment(gyms={"weights": {"travel": 1.0}}).training(lr=1e-3, grpo={"num_steps":
    10})`.
    """

    def __init__(self, algo_class: type | None = None, *, run: RunConfig | None = None):
        super().__init__(algo_class or GRPO, run=run)
