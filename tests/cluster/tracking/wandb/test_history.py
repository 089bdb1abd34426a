"""Rows for W&B: each once and in order, even after kills."""

import json
import math
from pathlib import Path

from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import evaluation_rows, read_rows
from cluster.run_folder.paths import RunFolder
from cluster.tracking.wandb.history import (
    HistoryEntry,
    WandbHistory,
    better_than,
    evaluation_entry,
    follow,
    read_entries,
    sft_entry,
    step_entry,
)
from tests.cluster.sample_run_folders import make_run


def names(folder: RunFolder) -> list[str]:
    return [f"{one.kind} {one.stage} {one.step}" for one in read_entries(folder.wandb / "history.jsonl")]


def test_the_history_is_rebuilt_from_the_run_folder_in_order(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=3)
    WandbHistory(folder, resume_step=3).close()
    assert names(folder) == [
        "evaluation untrained 0",
        "step  1",
        "step  2",
        "evaluation validation-00002 2",
        "step  3",
        "evaluation grpo 3",
    ]


def test_values_are_those_of_the_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=1)
    WandbHistory(folder, resume_step=1).close()
    untrained, step, *_ = read_entries(folder.wandb / "history.jsonl")
    line = json.loads(folder.metrics.read_text())
    assert step.values["rollout/reward/mean"] == line["rollout/reward/mean"]
    assert step.values["ledger/buffer/age/mean"] == line["buffer/age/mean"]
    average = next(r for r in read_rows(folder.evaluation) if (r.stage, r.gym) == ("untrained", "average"))
    assert untrained.values["eval/test/average/low"] == average.low
    assert untrained.values["step"] == 0


def test_no_entry_is_added_twice(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=2)
    for _ in range(2):
        history = WandbHistory(folder, resume_step=2)
        history.add(step_entry(2, metrics={"time/step_s": 9.0}))
        history.add(sft_entry(10, metrics={"learner/loss": 1.0}))
        history.close()
        assert not history.is_set_back
    assert names(folder).count("step  2") == 1
    assert names(folder)[-1] == "sft  10"


def test_a_run_that_resumes_earlier_deletes_undone_entries(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=1)
    history = WandbHistory(folder, resume_step=1)
    history.add(step_entry(2, metrics={}))
    history.close()
    again = WandbHistory(folder, resume_step=1)
    again.close()
    assert again.is_set_back
    assert "step  2" not in names(folder)


def test_an_incomplete_line_is_skipped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=1)
    WandbHistory(folder, resume_step=1).close()
    before = names(folder)
    with (folder.wandb / "history.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    assert names(folder) == before
    WandbHistory(folder, resume_step=1).close()
    assert names(folder) == before


def test_follow_returns_added_entries(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("")
    whole = '{"kind": "step", "step": 1, "values": {}}\n'
    parts = [whole[:10], whole[10:] + whole]

    def wait() -> bool:
        if not parts:
            return False
        with path.open("a") as file:
            file.write(parts.pop(0))
        return True

    assert [entry.step for entry in follow(path, wait=wait)] == [1, 1]


def test_values_that_are_not_finite_are_left_out() -> None:
    entry = step_entry(1, metrics={"learner/loss": math.nan, "learner/lr": None, "time/step_s": 1.0})
    assert entry.values == {"step": 1, "time/step_s": 1.0}


def test_the_summary_has_the_best_values_and_their_steps() -> None:
    def evaluated(score: float, *, step: int) -> HistoryEntry:
        outcome = DialogueOutcome(gym="function", task_id="task", score=score, num_turns=1)
        return evaluation_entry(evaluation_rows([outcome], stage="grpo", seed=0), step=step)

    best: dict[str, float] = {}
    for entry in (
        evaluated(0.5, step=0),
        step_entry(1, metrics={"rollout/reward/mean": 0.7}),
        step_entry(2, metrics={"rollout/reward/mean": 0.6}),
        evaluated(0.25, step=2),
    ):
        best |= better_than(best, entry)
    assert best == {
        "eval/test/average/score/best": 0.5,
        "eval/test/average/score/best_step": 0,
        "rollout/reward/mean/best": 0.7,
        "rollout/reward/mean/best_step": 1,
    }
