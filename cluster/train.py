"""The main job: evaluate, SFT, evaluate, GRPO, evaluate. A thin face of `GRPO`; a stopped run goes on where
it was."""

import json
import math
from collections.abc import Mapping

from cluster.algorithm import GRPO
from cluster.algorithm_config import GRPOConfig
from cluster.config import RunConfig
from cluster.console import quiet_libraries, say, times_line
from cluster.curve import draw_reward_curve
from cluster.results import keep_rows, print_rows, read_rows, validation_score, write_rows
from cluster.run_folder import RunFolder
from cluster.stop_signal import StopSignal, stop_between_steps
from cluster.tracking import Tracker, dialogue_rows

VALIDATION = "validation-"
"""Before the step, in the stage of validation rows."""


def train(config: RunConfig, *, as_json: bool) -> None:
    """Runs the whole job in its run folder. Ctrl-C saves a checkpoint, leaves no process behind, raises
    KeyboardInterrupt."""
    quiet_libraries()
    folder = RunFolder.of(config)
    resume_step = folder.latest_step or 0
    with Tracker(folder, config=config, resume_step=resume_step) as tracker:
        algorithm = GRPOConfig(run=config).build_algo()
        assert isinstance(algorithm, GRPO)
        try:
            if folder.latest_step is not None:
                algorithm.restore_from_path(folder.checkpoint(folder.latest_step))
                say(f"goes on from checkpoint {folder.checkpoint(folder.latest_step)}")
            else:
                algorithm.begin_anew()
            _cut_scores(folder, resume_step=resume_step, num_steps=config.grpo.num_steps)
            _stages(algorithm, tracker=tracker, folder=folder)
        finally:
            algorithm.stop()
    draw_reward_curve(folder, title=config.run.name)
    print_rows(read_rows(folder.evaluation), as_json=as_json)
    steps = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [step for step in steps if "engine/idle/share" in step]  # a run may be older than these numbers
    if steps:
        say(times_line(steps))
    say(f"model: {folder.model} | curve: {folder.reward_curve} | metrics: {folder.metrics}")


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


def _grpo(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder, stop: StopSignal) -> None:
    """GRPO steps up to the last, scored and saved now and then, and saved where it was stopped."""
    config = algorithm.run
    _save(algorithm, score=_validate(algorithm, tracker=tracker, folder=folder))
    while algorithm.policy_version < config.grpo.num_steps and not stop.asked:
        algorithm.train()
        step = algorithm.policy_version
        dialogues = [row for table in algorithm.step_dialogues for row in dialogue_rows(table, step=step)]
        tracker.log_step(step, metrics=algorithm.step_metrics, dialogues=dialogues)
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
    """Drops the scores of later steps, which are trained again, and GRPO's where steps are still to come."""
    if resume_step < num_steps:
        keep_rows(folder.evaluation, lambda row: row.stage != "grpo")
    keep_rows(folder.validation, lambda row: int(row.stage.removeprefix(VALIDATION)) <= resume_step)
