"""The main job: evaluate, SFT, evaluate, GRPO, evaluate. A thin face of `GRPO`; a stopped run goes on where
it was."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from cluster.config.run_config import RunConfig
from cluster.console.progress import quiet_libraries, say, set_up, times_line, warn
from cluster.driver.algorithm import GRPO, SETUP_PARTS
from cluster.driver.algorithm_config import GRPOConfig
from cluster.driver.checkpoint_mirror import mirror_of
from cluster.driver.stop_signal import StopSignal, stop_between_steps
from cluster.evaluation.results import (
    VALIDATION,
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


def train(config: RunConfig, *, as_json: bool) -> None:
    """Runs the whole job in its run folder. Ctrl-C saves a checkpoint, leaves no process behind, raises
    KeyboardInterrupt. A run that loses its buffer, or a process of its set-up, goes on with new processes;
    `RestartsExhaustedError` where it comes no further so."""
    quiet_libraries()
    folder = RunFolder.of(config)
    mirror = mirror_of(config)
    if mirror is not None and folder.latest_step is None and (step := mirror.fetch(folder)) is not None:
        say(f"checkpoint of step {step} comes from {config.checkpoint.mirror}")
    try:
        run_with_restarts(partial(_train, config, folder), place=lambda: folder.place)
    except RestartsExhaustedError:
        with Tracker(folder, config=config, resume_step=config.grpo.num_steps):  # it has W&B send an alert
            raise
    draw_reward_curve(folder, title=config.run.name)
    print_rows(read_rows(folder.evaluation), as_json=as_json)
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "engine/idle/share" in line]  # a run may be older than these numbers
    if lines:
        say(times_line(lines))
    say(f"model: {folder.model} | curve: {folder.reward_curve} | metrics: {folder.metrics}")


def _train(config: RunConfig, folder: RunFolder) -> None:
    """From the last checkpoint to the end. Raises `RestartError`, and what cannot be mended."""
    with ExitStack() as ending:
        with set_up(SETUP_PARTS):
            algorithm = GRPOConfig(run=config).build_algo()
        assert isinstance(algorithm, GRPO)
        try:
            redone_step = _resume(algorithm, folder=folder)
            _cut_scores(folder, resume_step=redone_step, num_steps=config.grpo.num_steps)
            tracker = ending.enter_context(Tracker(folder, config=config, resume_step=redone_step))
            _stages(algorithm, tracker=tracker, folder=folder)
        except RestartError:
            raise
        except Exception as error:
            if algorithm.groups.is_lost:  # learners and rollout actors may miss it first
                raise LostBufferError(BUFFER_DIED) from error
            raise
        finally:
            _end(algorithm)


def _end(algorithm: GRPO) -> None:
    """Ends its processes. What goes wrong in this is told, and hides nothing that was raised before."""
    try:
        algorithm.stop()
    except Exception as error:
        warn(f"not all processes ended as they should: {type(error).__name__}: {error}")


def _resume(algorithm: GRPO, *, folder: RunFolder) -> int:
    """Goes on where the run was. The step after the last one whose groups are known: those up to it come out
    as they did before."""
    checkpoint = None if folder.latest_step is None else folder.checkpoint(folder.latest_step)
    num_redone = algorithm.go_on()
    if checkpoint is not None:
        say(f"goes on from checkpoint {checkpoint}")
    if num_redone > 0:
        say(f"{num_redone} steps since then are taken again, on the groups that they had")
    elif num_redone < 0 and checkpoint is not None:
        warn("the journal does not reach back to it: groups that were not trained then are played again")
    return algorithm.policy_version + max(0, num_redone)


def _stages(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder) -> None:
    with stop_between_steps() as stop:
        _evaluate(algorithm, "untrained", tracker=tracker, folder=folder)
        _cold_start(algorithm, tracker=tracker, folder=folder, stop=stop)
        _evaluate(algorithm, "sft", tracker=tracker, folder=folder)
        _grpo(algorithm, tracker=tracker, folder=folder, stop=stop)
    algorithm.write_model()
    if folder.best is not None:
        say(f"best checkpoint: step {folder.best.step}, validation score {folder.best.score:.3f}")
        algorithm.write_best_model(folder.best)
    _evaluate(algorithm, "grpo", tracker=tracker, folder=folder)


def _cold_start(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder, stop: StopSignal) -> None:
    """SFT, saved at its end or where it was stopped."""
    if stop.asked:
        raise KeyboardInterrupt
    if algorithm.cold_started:
        return

    def log(step: int, metrics: Mapping[str, float]) -> None:
        tracker.log_sft(step, metrics=metrics)
        if stop.asked:
            algorithm.begin_checkpoint()
            algorithm.finish_checkpoint()
            raise KeyboardInterrupt

    algorithm.cold_start(log)
    algorithm.begin_checkpoint()
    algorithm.finish_checkpoint()  # what GRPO samples from here on is known to be of these weights


def _grpo(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder, stop: StopSignal) -> None:
    """GRPO steps up to the last, scored and saved now and then, and saved where it was stopped."""
    config = algorithm.run
    _save(algorithm, score=_validate(algorithm, tracker=tracker, folder=folder))
    while algorithm.policy_version < config.grpo.num_steps and not stop.asked:
        algorithm.train()
        step = algorithm.policy_version
        tracker.log_step(step, metrics=algorithm.step_metrics)
        score = None if stop.asked else _validate(algorithm, tracker=tracker, folder=folder)
        is_due = step % config.checkpoint.every_steps == 0 or step == config.grpo.num_steps
        _save(algorithm, score=score, is_due=is_due or stop.asked)
    algorithm.finish_checkpoint()
    if stop.asked:
        raise KeyboardInterrupt


def _evaluate(algorithm: GRPO, stage: str, *, tracker: Tracker, folder: RunFolder) -> None:
    """Evaluates, unless the rows of this stage are there from before a stop."""
    if any(row.stage == stage for row in read_rows(folder.evaluation)):
        return
    rows = algorithm.evaluate_stage(stage)
    write_rows(folder.evaluation, rows)
    tracker.log_evaluation(rows, step=algorithm.policy_version)


def _save(algorithm: GRPO, *, score: float | None, is_due: bool = False) -> None:
    """Begins a checkpoint where one is due or the policy scores better than all before."""
    if is_due or score is not None:
        algorithm.begin_checkpoint(score=score)


def _validate(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder) -> float | None:
    """Scores the policy on validation tasks where that is due; scores from before a stop are taken as they
    are. Returns the score where it is better than the best checkpoint's."""
    step, every_steps = algorithm.policy_version, algorithm.run.evaluation.every_steps
    is_due = every_steps and (step % every_steps == 0 or step == algorithm.run.grpo.num_steps)
    stage = f"{VALIDATION}{step:05d}"
    if not is_due:
        return None
    rows = [row for row in read_rows(folder.validation) if row.stage == stage]
    if not rows:
        rows = algorithm.evaluate_stage(stage, split="validation")
        write_rows(folder.validation, rows)
        tracker.log_evaluation(rows, step=step)
    algorithm.finish_checkpoint()  # it may be the best
    score, best = validation_score(rows), folder.best
    so_far = "" if best is None else f" | best so far {best.score:.3f} at step {best.step}"
    say(f"validation at step {step}: {score:.3f}{so_far}")
    return score if score > (best.score if best else -math.inf) else None  # NaN is no score


def _cut_scores(folder: RunFolder, *, resume_step: int, num_steps: int) -> None:
    """Drops the scores of later steps, which are trained anew, and GRPO's where steps are still to come."""
    if resume_step < num_steps:
        keep_rows(folder.evaluation, lambda row: row.stage != "grpo")
    keep_rows(folder.validation, lambda row: int(row.stage.removeprefix(VALIDATION)) <= resume_step)
