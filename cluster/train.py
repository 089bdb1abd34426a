"""The main job: evaluate, SFT, evaluate, GRPO, evaluate. A thin face of `GRPO`; a stopped run goes on where
it was."""

from collections.abc import Mapping

from cluster.algorithm import GRPO
from cluster.algorithm_config import GRPOConfig
from cluster.config import RunConfig
from cluster.console import quiet_libraries, say
from cluster.curve import draw_reward_curve
from cluster.results import print_rows, read_rows, write_rows
from cluster.run_folder import RunFolder
from cluster.stop_signal import StopSignal, stop_between_steps
from cluster.tracking import Tracker, dialogue_rows


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
            _stages(algorithm, tracker=tracker, folder=folder)
        finally:
            algorithm.stop()
    draw_reward_curve(folder, title=config.run.name)
    print_rows(read_rows(folder.evaluation), as_json=as_json)
    say(f"model: {folder.model} | curve: {folder.reward_curve} | metrics: {folder.metrics}")


def _stages(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder) -> None:
    with stop_between_steps() as stop:
        _evaluate(algorithm, "untrained", tracker=tracker, folder=folder)
        _cold_start(algorithm, tracker=tracker, folder=folder, stop=stop)
        _evaluate(algorithm, "sft", tracker=tracker, folder=folder)
        _grpo(algorithm, tracker=tracker, folder=folder, stop=stop)
    _evaluate(algorithm, "grpo", tracker=tracker, folder=folder)
    algorithm.write_model()


def _cold_start(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder, stop: StopSignal) -> None:
    """SFT, saved at its end or where it was stopped."""
    if stop.asked:
        raise KeyboardInterrupt
    if algorithm.cold_started:
        return

    def log(step: int, metrics: Mapping[str, float]) -> None:
        tracker.log_sft(step, metrics=metrics)
        if stop.asked:
            _save(algorithm, folder)
            raise KeyboardInterrupt

    algorithm.cold_start(log)
    _save(algorithm, folder)


def _grpo(algorithm: GRPO, *, tracker: Tracker, folder: RunFolder, stop: StopSignal) -> None:
    """GRPO steps up to the last, saved now and then, and where it was stopped."""
    config = algorithm.run
    while algorithm.policy_version < config.grpo.num_steps and not stop.asked:
        algorithm.train()
        step = algorithm.policy_version
        dialogues = [row for table in algorithm.step_dialogues for row in dialogue_rows(table, step=step)]
        tracker.log_step(step, metrics=algorithm.step_metrics, dialogues=dialogues)
        if stop.asked or step % config.checkpoint.every_steps == 0 or step == config.grpo.num_steps:
            _save(algorithm, folder)
    if stop.asked:
        raise KeyboardInterrupt


def _evaluate(algorithm: GRPO, stage: str, *, tracker: Tracker, folder: RunFolder) -> None:
    """Evaluates, unless the rows of this stage are there from before a stop. GRPO's are made anew: more steps
    may have been asked of a finished run."""
    if stage != "grpo" and any(row.stage == stage for row in read_rows(folder.evaluation)):
        return
    rows = algorithm.evaluate_stage(stage)
    write_rows(folder.evaluation, rows)
    tracker.log_evaluation(rows, step=algorithm.policy_version)


def _save(algorithm: GRPO, folder: RunFolder) -> None:
    config = algorithm.run
    folder.save_checkpoint(
        algorithm.policy_version, write=lambda path: algorithm.save_to_path(path), keep=config.checkpoint.keep
    )
