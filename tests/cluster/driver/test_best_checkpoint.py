"""The best checkpoint is chosen by the validation tasks of trained gyms alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.driver.checkpoints import Checkpoints
from cluster.driver.train import TrainJob, drop_later_scores
from cluster.evaluation.evaluate import evaluation_orders, validation_orders
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import evaluation_rows, read_rows, validation_score, write_rows
from cluster.run_folder.paths import STATE_FILE, BestCheckpoint, RunFolder
from simulators.task import TaskSource

CONFIG = {
    "gyms": {"weights": {"function": 1.0, "travel": 1.0, "turtle": 1.0}, "held_out": ["turtle"]},
    "evaluation": {"every_steps": 10, "validation_tasks_per_gym": 3},
    "grpo": {"num_steps": 25},
}


def outcome(score: float, *, gym: str = "function") -> DialogueOutcome:
    return DialogueOutcome(gym=gym, task_id=f"{gym}-0", score=score, num_turns=2)


class Scored:
    """An algorithm whose policy has a given score at each step."""

    def __init__(self, folder: RunFolder, scores: dict[int, float]):
        self.run = RunConfig.model_validate(CONFIG)
        self.policy_version = 0
        self.splits: list[str] = []
        self._folder = folder
        self._scores = scores

    def evaluate_stage(self, stage: str, *, split: Any) -> Any:
        self.splits.append(split)
        return evaluation_rows([outcome(self._scores[self.policy_version])], stage=stage, seed=0, split=split)

    def begin_checkpoint(self, *, score: float | None = None) -> None:
        (self._folder.begin_checkpoint(self.policy_version) / STATE_FILE).touch()
        self._folder.complete_checkpoint(self.policy_version)
        if score is not None:
            self._folder.keep_best(self.policy_version, score=score)

    def finish_checkpoint(self) -> None: ...


def job_of(algorithm: Any, folder: RunFolder) -> TrainJob:
    tracker: Any = SimpleNamespace(log_evaluation=lambda rows, step: None)
    return TrainJob(algorithm, tracker, folder)


def go_through(algorithm: Any, folder: RunFolder, *, steps: range) -> None:
    job = job_of(algorithm, folder)
    for algorithm.policy_version in steps:
        job.validate()


def test_the_best_score_is_kept_and_a_resumed_run_knows_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    scores = {0: 0.2, 10: 0.6, 20: 0.5, 25: float("nan")}
    algorithm = Scored(folder, scores)
    go_through(algorithm, folder, steps=range(15))
    assert folder.best is not None and (folder.best.step, folder.best.score) == (10, 0.6)

    resumed = Scored(folder, scores | {10: 0.9})
    go_through(resumed, folder, steps=range(10, 26))
    assert (folder.best.step, folder.best.score) == (10, 0.6), "a scored step is not scored again"
    assert [row.stage for row in read_rows(folder.validation) if row.gym == "average"] == [
        *("validation-00000", "validation-00010", "validation-00020", "validation-00025")
    ]
    assert {row.split for row in read_rows(folder.validation)} == {"validation"}
    assert set(algorithm.splits + resumed.splits) == {"validation"}
    assert not folder.evaluation.exists(), "the final table has no row of these"


def test_scores_of_steps_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    drop_later_scores(folder, resume_step=0, num_steps=25)
    algorithm = Scored(folder, {0: 0.2, 10: 0.6, 20: 0.7})
    go_through(algorithm, folder, steps=range(21))
    drop_later_scores(folder, resume_step=19, num_steps=25)
    assert {row.stage for row in read_rows(folder.validation)} == {"validation-00000", "validation-00010"}


def test_a_score_whose_checkpoint_a_kill_prevented_makes_it_the_best_after_the_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    killed: Any = Scored(folder, {0: 0.2})
    killed.begin_checkpoint()  # of the cold start
    killed.begin_checkpoint = lambda *, score: scored.append(score)  # the run is killed before it is written
    scored: list[float] = []
    assert job_of(killed, folder).validate() and scored == [0.2]
    assert folder.best is None
    resumed = Scored(folder, {})
    drop_later_scores(folder, resume_step=0, num_steps=25)
    go_through(resumed, folder, steps=range(1))
    assert resumed.splits == [], "it is not scored again"
    assert folder.best is not None and (folder.best.step, folder.best.score) == (0, 0.2)
    before = folder.best.path.stat().st_ino
    go_through(resumed, folder, steps=range(1))
    assert folder.best.path.stat().st_ino == before, "and it is not kept twice"


class Ending(Scored):
    """An algorithm after its last GRPO step. Its models are empty folders; it fails at the call named
    `trouble`."""

    cold_started = True

    def __init__(self, folder: RunFolder, *, num_steps: int, trouble: str = ""):
        super().__init__(folder, {num_steps: num_steps / 100})
        self.policy_version = num_steps
        self.run = RunConfig.model_validate({**CONFIG, "grpo": {"num_steps": num_steps}})
        self.asked: list[str] = []
        self._trouble = trouble

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name == self._trouble:
            raise InterruptedError

    def evaluate_stage(self, stage: str, *, split: Any = "test") -> Any:
        if split == "test":
            self._ask(stage)
        return super().evaluate_stage(stage, split=split)

    def write_model(self) -> None:
        self._ask("model")
        self._folder.model.mkdir(exist_ok=True)
        (self._folder.model / "config.json").touch()

    def write_best_model(self, best: BestCheckpoint) -> None:
        self._ask("best_model")
        self._folder.best_model.mkdir(exist_ok=True)
        (self._folder.best_model / "config.json").touch()


def end(folder: RunFolder, *, num_steps: int, trouble: str = "") -> list[str]:
    algorithm = Ending(folder, num_steps=num_steps, trouble=trouble)
    job_of(algorithm, folder).run()
    return algorithm.asked


@pytest.mark.parametrize("trouble", ["model", "best_model", "grpo"])
def test_a_run_is_finished_when_the_models_and_scores_of_its_last_step_are_there(
    tmp_path: Path, trouble: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.create(RunConfig())
    assert end(folder, num_steps=10) == ["untrained", "sft", "model", "best_model", "grpo"]
    assert folder.state(num_steps=10) == "finished"

    drop_later_scores(folder, resume_step=10, num_steps=20)  # more steps are asked for
    assert {row.stage for row in read_rows(folder.evaluation)} == {"untrained", "sft"}
    with pytest.raises(InterruptedError):
        end(folder, num_steps=20, trouble=trouble)
    assert folder.latest_step == 20
    assert folder.state(num_steps=20) == "stopped"
    drop_later_scores(folder, resume_step=20, num_steps=20)
    assert end(folder, num_steps=20) == ["model", "best_model", "grpo"]
    assert folder.state(num_steps=20) == "finished"
    drop_later_scores(folder, resume_step=20, num_steps=20)
    assert folder.state(num_steps=20) == "finished"


@pytest.mark.parametrize("is_last", [True, False])
def test_if_the_last_policy_is_the_best_its_model_is_written_without_loading_a_checkpoint(
    tmp_path: Path, is_last: bool
) -> None:
    folder, asked = RunFolder(tmp_path), []
    for step in (10, 20):
        (folder.begin_checkpoint(step) / STATE_FILE).touch()
        folder.complete_checkpoint(step)
    best = folder.keep_best(20 if is_last else 10, score=0.5)

    def export(path: Path) -> None:
        asked.append("last")
        path.mkdir()

    def export_checkpoint(checkpoint: Path, path: Path) -> None:
        asked.append(checkpoint.parent.name)
        path.mkdir()

    learners: Any = SimpleNamespace(export=export, export_checkpoint=export_checkpoint)
    Checkpoints(folder, recipe="", keep=2, learners=learners).export_best(best, policy_version=20)
    assert asked == ["last" if is_last else "best-00010"]
    assert folder.best_model.is_dir()


def test_no_test_task_and_no_task_of_a_held_out_gym_chooses_a_checkpoint() -> None:
    config = RunConfig.model_validate(CONFIG)
    chosen = {order.task_key for order in validation_orders(config)}
    assert {(key.gym, key.split) for key in chosen} == {("function", "validation"), ("travel", "validation")}
    assert len(chosen) == 6
    tested = {order.task_key for order in evaluation_orders(config, split="test", num_trials=1)}
    source = TaskSource(config.gyms.trained, split="train", seed=0, difficulty=0)
    trained = {source.draw() for _ in range(100)}
    assert not chosen & (tested | trained)
    with pytest.raises(AssertionError, match="only validation tasks"):
        validation_score(evaluation_rows([outcome(1.0)], stage="grpo", seed=0))


def test_every_gym_has_the_same_weight_in_the_choice() -> None:
    outcomes = [outcome(0.0, gym="travel"), outcome(1.0), outcome(1.0)]
    rows = evaluation_rows(outcomes, stage="validation-00010", seed=0, split="validation")
    assert validation_score(rows) == 0.5


def test_published_tasks_without_a_validation_split_cannot_choose_a_checkpoint(tmp_path: Path) -> None:
    data = {"gyms": {**CONFIG["gyms"], "data": {"travel": tmp_path / "travel.json"}}}
    with pytest.raises(ValueError, match=r"gyms\.data\.travel has no validation tasks"):
        RunConfig.model_validate(CONFIG | data)
    RunConfig.model_validate(CONFIG | data | {"evaluation": {"every_steps": 0}})


def test_a_row_keeps_its_split_on_disk(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        rows = evaluation_rows([outcome(1.0)], stage=split, seed=0, split=split)
        write_rows(tmp_path / "rows.json", rows)
    assert [row.split for row in read_rows(tmp_path / "rows.json")] == ["validation"] * 2 + ["test"] * 2
