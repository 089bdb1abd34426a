"""The training job of `userrl train`: evaluate, SFT, evaluate, GRPO, evaluate. A stopped run resumes where it
was."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack

from cluster.config.run_config import RunConfig
from cluster.console.log import info, warn
from cluster.console.progress import quiet_libraries, setup_progress, times_line
from cluster.driver.algorithm import GRPO, SETUP_PARTS, GRPOConfig
from cluster.driver.checkpoint_mirror import mirror_of
from cluster.driver.stop_signal import StopSignal, stop_between_steps
from cluster.evaluation.results import (
    VALIDATION,
    EvaluationRow,
    keep_rows,
    print_rows,
    read_rows,
    validation_score,
    write_rows,
)
from cluster.report.reward_curve import draw_reward_curve
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker
from cluster.workers.buffer_client import BUFFER_DIED
from cluster.workers.restart import LostBufferError, RestartError, RestartsExhaustedError, run_with_restarts
from simulators.task import Split


def train(config: RunConfig, *, as_json: bool) -> None:
    """Runs the whole job in its run folder. Ctrl-C saves a checkpoint, leaves no process behind, and raises
    KeyboardInterrupt. A run that loses its buffer, or a process during its set-up, restarts with new
    processes; raises `RestartsExhaustedError` if that makes no progress."""
    quiet_libraries()
    folder = RunFolder.of(config)
    mirror = mirror_of(config)
    if mirror is not None and folder.latest_step is None and (step := mirror.fetch(folder)) is not None:
        info(f"checkpoint of step {step} comes from {config.checkpoint.mirror}")
    try:
        run_with_restarts(lambda: _train(config, folder), place=lambda: folder.resume_point)
    except RestartsExhaustedError:
        with Tracker(folder, config=config, resume_step=config.grpo.num_steps):  # so that W&B sends an alert
            raise
    draw_reward_curve(folder, title=config.run.name)
    print_rows(read_rows(folder.evaluation), as_json=as_json)
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    if lines:
        info(times_line(lines))
    info(f"model: {folder.model} | curve: {folder.reward_curve} | metrics: {folder.metrics}")


def _train(config: RunConfig, folder: RunFolder) -> None:
    """From the last checkpoint to the end. Raises `RestartError`, and errors that a restart cannot cure."""
    with ExitStack() as tracking:
        with setup_progress(SETUP_PARTS):
            algorithm = GRPOConfig(run=config).build_algo()
        assert isinstance(algorithm, GRPO)
        try:
            resume_step = _resume(algorithm, folder)
            drop_later_scores(folder, resume_step=resume_step, num_steps=config.grpo.num_steps)
            tracker = tracking.enter_context(Tracker(folder, config=config, resume_step=resume_step))
            TrainJob(algorithm, tracker, folder).run()
        except RestartError:
            raise
        except Exception as error:
            if algorithm.parts.buffer.is_lost:  # learners and rollout actors may notice it first
                raise LostBufferError(BUFFER_DIED) from error
            raise
        finally:
            _stop(algorithm)


def _stop(algorithm: GRPO) -> None:
    """Ends its processes. An error of this is reported, and hides nothing that was raised before."""
    try:
        algorithm.stop()
    except Exception as error:
        warn(f"not all processes stopped cleanly: {type(error).__name__}: {error}")


def _resume(algorithm: GRPO, folder: RunFolder) -> int:
    """Resumes the run: returns the last step whose groups are known. Steps up to it give the same results as
    before."""
    checkpoint = None if folder.latest_step is None else folder.checkpoint(folder.latest_step)
    num_repeated = algorithm.resume()
    if checkpoint is not None:
        info(f"resumed from checkpoint {checkpoint}")
    if num_repeated > 0:
        info(f"{num_repeated} steps since then are repeated, on the same groups")
    elif num_repeated < 0 and checkpoint is not None:
        warn("the journal does not reach back to it: groups that were not trained by then are played again")
    return algorithm.policy_version + max(0, num_repeated)


def drop_later_scores(folder: RunFolder, *, resume_step: int, num_steps: int) -> None:
    """Drops the scores of steps after `resume_step`, which are trained again, and the final ones if steps are
    still to come."""
    if resume_step < num_steps:
        keep_rows(folder.evaluation, lambda row: row.stage != "grpo")
    keep_rows(folder.validation, lambda row: int(row.stage.removeprefix(VALIDATION)) <= resume_step)


class TrainJob:
    """The stages of one job, each of which skips what was done before a stop."""

    def __init__(self, algorithm: GRPO, tracker: Tracker, folder: RunFolder):
        self._algorithm = algorithm
        self._tracker = tracker
        self._folder = folder

    def run(self) -> None:
        """All stages, then the models. Raises KeyboardInterrupt if it was asked to stop."""
        with stop_between_steps() as stop:
            self.evaluate("untrained")
            self.cold_start(stop)
            self.evaluate("sft")
            self.grpo(stop)
        self._algorithm.write_model()
        if (best := self._folder.best) is not None:
            info(f"best checkpoint: step {best.step}, validation score {best.score:.3f}")
            self._algorithm.write_best_model(best)
        self.evaluate("grpo")

    def cold_start(self, stop: StopSignal) -> None:
        """SFT, with a checkpoint at its end or where it was stopped."""
        if stop.asked:
            raise KeyboardInterrupt
        if self._algorithm.cold_started:
            return

        def log(step: int, metrics: Mapping[str, float]) -> None:
            self._tracker.log_sft(step, metrics=metrics)
            if stop.asked:
                self._save_now()
                raise KeyboardInterrupt

        self._algorithm.cold_start(log)
        self._save_now()  # groups that GRPO samples from here on are known to be of these weights

    def grpo(self, stop: StopSignal) -> None:
        """GRPO steps up to the last, validated and saved when due, and saved when stopped."""
        config = self._algorithm.run
        self.validate()
        while self._algorithm.policy_version < config.grpo.num_steps and not stop.asked:
            self._algorithm.train()
            step = self._algorithm.policy_version
            self._tracker.log_step(step, metrics=self._algorithm.step_metrics)
            is_saved = not stop.asked and self.validate()
            is_due = step % config.checkpoint.every_steps == 0 or step == config.grpo.num_steps
            if not is_saved and (is_due or stop.asked):
                self._algorithm.begin_checkpoint()
        self._algorithm.finish_checkpoint()
        if stop.asked:
            raise KeyboardInterrupt

    def validate(self) -> bool:
        """Scores the policy on validation tasks if that is due, and begins a checkpoint if it is the best so
        far: returns whether it did. Scores from before a stop are reused."""
        step, every_steps = self._algorithm.policy_version, self._algorithm.run.evaluation.every_steps
        if not every_steps or (step % every_steps and step != self._algorithm.run.grpo.num_steps):
            return False
        stage = f"{VALIDATION}{step:05d}"
        rows = [row for row in read_rows(self._folder.validation) if row.stage == stage]
        if not rows:
            rows = self.score(stage, split="validation")
        self._algorithm.finish_checkpoint()  # it may be the best
        score, best = validation_score(rows), self._folder.best
        so_far = "" if best is None else f" | best so far {best.score:.3f} at step {best.step}"
        info(f"validation at step {step}: {score:.3f}{so_far}")
        is_best = score > (best.score if best else -math.inf)  # not if it is NaN
        if is_best:
            self._algorithm.begin_checkpoint(score=score)
        return is_best

    def evaluate(self, stage: str) -> None:
        """Scores the policy on test tasks, unless the rows of this stage are there from before a stop."""
        if all(row.stage != stage for row in read_rows(self._folder.evaluation)):
            self.score(stage)

    def score(self, stage: str, *, split: Split = "test") -> list[EvaluationRow]:
        """Scores the policy, and keeps and logs the rows."""
        rows = self._algorithm.evaluate_stage(stage, split=split)
        write_rows(self._folder.validation if split == "validation" else self._folder.evaluation, rows)
        self._tracker.log_evaluation(rows, step=self._algorithm.policy_version)
        return rows

    def _save_now(self) -> None:
        self._algorithm.begin_checkpoint()
        self._algorithm.finish_checkpoint()
