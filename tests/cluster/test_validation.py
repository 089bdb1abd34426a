"""The best checkpoint is chosen by validation tasks of trained gyms, and by nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.evaluate import evaluation_orders, validation_orders
from cluster.results import evaluation_rows, read_rows, validation_score, write_rows
from cluster.run_folder import RunFolder
from cluster.scores import Outcome
from cluster.train import _cut_validation, _save, _validate
from simulators.task import TaskSource

CONFIG = {
    "gyms": {"weights": {"function": 1.0, "travel": 1.0, "turtle": 1.0}, "held_out": ["turtle"]},
    "evaluation": {"every_steps": 10, "validation_tasks_per_gym": 3},
    "grpo": {"num_steps": 25},
}


def outcome(score: float, *, gym: str = "function") -> Outcome:
    return Outcome(gym=gym, task_id=f"{gym}-0", score=score, num_turns=2)


class Scored:
    """An algorithm whose policy scores what it is told, step by step."""

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
        self._folder.begin_checkpoint(self.policy_version)
        self._folder.complete_checkpoint(self.policy_version, keep=1)
        if score is not None:
            self._folder.keep_best(self.policy_version, score=score)

    def finish_checkpoint(self) -> None: ...


def go_through(algorithm: Any, folder: RunFolder, *, steps: range) -> None:
    tracker: Any = SimpleNamespace(log_evaluation=lambda rows, step: None)
    for algorithm.policy_version in steps:
        _save(algorithm, score=_validate(algorithm, tracker=tracker, folder=folder))


def test_the_best_of_the_scores_is_kept_and_a_resumed_run_knows_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    scores = {0: 0.2, 10: 0.6, 20: 0.5, 25: float("nan")}
    algorithm = Scored(folder, scores)
    go_through(algorithm, folder, steps=range(15))
    assert folder.best is not None and (folder.best.step, folder.best.score) == (10, 0.6)

    resumed = Scored(folder, scores | {10: 0.9})
    go_through(resumed, folder, steps=range(10, 26))
    assert (folder.best.step, folder.best.score) == (10, 0.6), "what is scored is not scored again"
    assert [row.stage for row in read_rows(folder.validation) if row.gym == "average"] == [
        *("validation-00000", "validation-00010", "validation-00020", "validation-00025")
    ]
    assert {row.split for row in read_rows(folder.validation)} == {"validation"}
    assert set(algorithm.splits + resumed.splits) == {"validation"}
    assert not folder.evaluation.exists(), "the final table has no row of these"


def test_scores_of_steps_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _cut_validation(folder, resume_step=0)
    algorithm = Scored(folder, {0: 0.2, 10: 0.6, 20: 0.7})
    go_through(algorithm, folder, steps=range(21))
    _cut_validation(folder, resume_step=19)
    assert {row.stage for row in read_rows(folder.validation)} == {"validation-00000", "validation-00010"}


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


def test_every_gym_counts_alike_in_the_choice() -> None:
    outcomes = [outcome(0.0, gym="travel"), outcome(1.0), outcome(1.0)]
    rows = evaluation_rows(outcomes, stage="validation-00010", seed=0, split="validation")
    assert validation_score(rows) == 0.5


def test_published_tasks_which_have_no_validation_split_choose_no_checkpoint(tmp_path: Path) -> None:
    data = {"gyms": {**CONFIG["gyms"], "data": {"travel": tmp_path / "travel.json"}}}
    with pytest.raises(ValueError, match=r"gyms\.data\.travel has no tasks for validation only"):
        RunConfig.model_validate(CONFIG | data)
    RunConfig.model_validate(CONFIG | data | {"evaluation": {"every_steps": 0}})


def test_a_row_keeps_its_split_on_disk(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        rows = evaluation_rows([outcome(1.0)], stage=split, seed=0, split=split)
        write_rows(tmp_path / "rows.json", rows)
    assert [row.split for row in read_rows(tmp_path / "rows.json")] == ["validation"] * 2 + ["test"] * 2
