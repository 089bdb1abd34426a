"""Evaluation rows: hand-computed scores and intervals; failures are counted, never scored."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cluster.evaluation.metrics import DialogueOutcome, interval
from cluster.evaluation.results import (
    EvaluationRow,
    evaluation_rows,
    joined_row,
    print_rows,
    read_rows,
    with_summary,
    write_rows,
)

NAN = math.nan


def outcomes(
    gym: str, scores: list[float], *, num_turns: int = 4, simulator: str = "rules"
) -> list[DialogueOutcome]:
    return [
        DialogueOutcome(gym=gym, task_id=f"{gym}-{i}", score=score, num_turns=num_turns, simulator=simulator)
        for i, score in enumerate(scores)
    ]


def test_wilson_interval_of_eight_of_ten() -> None:
    # Wilson 1927 with z = 1.96: (0.8 + 0.19207) / 1.38415 ± 1.96 / 1.38415 * sqrt(0.016 + 0.009604)
    low, high = interval(np.array([1.0] * 8 + [0.0] * 2), seed=0)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_all_zeros_still_have_a_width() -> None:
    low, high = interval(np.zeros(200), seed=0)
    assert low == 0.0
    assert high == pytest.approx(0.01885, abs=1e-5)


def test_bootstrap_agrees_with_the_normal_interval_on_many_graded_scores() -> None:
    scores = np.random.default_rng(1).uniform(0, 1, size=400)
    low, high = interval(scores, seed=0)
    half = 1.96 * scores.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.003)
    assert interval(scores, seed=0) == (low, high)


def test_rows_are_the_same_in_whatever_order_dialogues_end() -> None:
    scores = np.random.default_rng(1).uniform(0, 1, size=40).tolist()
    ended = [*outcomes("travel", scores), *outcomes("tau", scores[::-1])]
    shuffled = [ended[i] for i in np.random.default_rng(2).permutation(len(ended))]
    assert evaluation_rows(shuffled, stage="sft", seed=0) == evaluation_rows(ended, stage="sft", seed=0)


def test_a_failed_dialogue_is_counted_and_not_scored() -> None:
    row, _ = evaluation_rows(outcomes("travel", [0.5, NAN, 1.0, NAN]), stage="sft", seed=0)
    assert (row.n, row.num_failed, row.score, row.turns) == (2, 2, 0.75, 4.0)


def test_average_counts_gyms_alike_and_is_narrower_than_the_gyms() -> None:
    many = outcomes("function", [1.0] * 90 + [0.0] * 10, num_turns=2) + outcomes("travel", [0.0, 1.0] * 10)
    function, travel, average = evaluation_rows(many, stage="grpo", seed=0)
    assert (average.gym, average.n, average.score, average.turns) == ("average", 120, 0.7, 3.0)
    below = math.hypot(function.score - function.low, travel.score - travel.low) / 2
    assert average.low == pytest.approx(0.7 - below)
    assert 0.7 < average.high < 1.0


def test_a_gym_where_everything_failed_has_no_score_and_neither_has_the_average(tmp_path: Path) -> None:
    rows = evaluation_rows(outcomes("function", [NAN, NAN]) + outcomes("travel", [1.0]), stage="sft", seed=0)
    write_rows(tmp_path / "evaluation.json", rows)
    written = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert [row["score"] for row in written] == [None, 1.0, None]
    assert math.isnan(read_rows(tmp_path / "evaluation.json")[0].score)


def test_evaluation_json_has_the_fixed_names_and_a_stage_once(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    for stage, score in (("untrained", 0.0), ("sft", 0.5), ("untrained", 0.25)):
        write_rows(path, evaluation_rows(outcomes("function", [score]), stage=stage, seed=0))
    rows = json.loads(path.read_text())["rows"]
    assert {"stage", "gym", "simulator", "n", "score", "low", "high", "turns"} <= set(rows[0])
    assert [(row["stage"], row["gym"], row["score"]) for row in rows] == [
        ("sft", "function", 0.5),
        ("sft", "average", 0.5),
        ("untrained", "function", 0.25),
        ("untrained", "average", 0.25),
    ]


def test_table_shows_every_stage_and_json_is_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    rows = evaluation_rows(outcomes("function", [0.5, 0.25, NAN]), stage="sft", seed=0)
    print_rows(rows)
    text = capsys.readouterr().out
    assert "0.375" in text
    assert "1 failed" in text
    print_rows(rows, as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"][0]["num_failed"] == 1


PAPER_8B = {
    "travel": (471, 0.5730),
    "turtle": (48, 0.1854),
    "function": (78, 0.4231),
    "tau": (165, 0.1818),
    "persuade": (42, 0.5317),
    "intention": (40, 1.8175),
    "telepathy": (41, 0.5610),
    "search": (125, 0.8880),
}
"""UserRL, Table 3: test tasks and score of Qwen3-8B, Equalized/R2G; its average is 0.5652."""


def paper_row(gym: str) -> EvaluationRow:
    num_tasks, score = PAPER_8B[gym]
    return EvaluationRow(
        stage="8b", policy="8b", gym=gym, simulator="gpt-4o", num_tasks=num_tasks, n=num_tasks, num_failed=0,
        score=score, low=score, high=score, turns=1.0,
    )  # fmt: skip


def test_micro_macro_and_held_out_averages_are_those_of_the_paper() -> None:
    rows = [paper_row(gym) for gym in PAPER_8B]
    assert joined_row(rows, gym="micro").score == pytest.approx(0.5652, abs=1e-4)
    assert joined_row(rows, gym="macro").score == pytest.approx(0.6452, abs=1e-4)
    held_out = [row for row in rows if row.gym in ("intention", "telepathy", "search")]
    assert joined_row(held_out, gym="micro").score == pytest.approx(1.0034, abs=1e-4)


def test_each_simulator_has_rows_and_averages_of_its_own() -> None:
    played = outcomes("function", [1.0, 0.0]) + outcomes("turtle", [1.0])
    played += outcomes("function", [0.0, 0.0], simulator="llm") + outcomes("turtle", [0.5], simulator="llm")
    rows = with_summary(evaluation_rows(played, stage="x", seed=0, held_out=["turtle"]))
    assert [(row.simulator, row.gym, round(row.score, 3)) for row in rows] == [
        ("rules", "function", 0.5),
        ("rules", "turtle", 1.0),
        ("rules", "average", 0.75),
        ("rules", "macro", 0.75),
        ("rules", "micro", 0.667),
        ("rules", "held_out", 1.0),
        ("llm", "function", 0.0),
        ("llm", "turtle", 0.5),
        ("llm", "average", 0.25),
        ("llm", "macro", 0.25),
        ("llm", "micro", 0.167),
        ("llm", "held_out", 0.5),
    ]


def test_no_dialogue_is_no_evaluation() -> None:
    with pytest.raises(ValueError, match="at least one dialogue"):
        evaluation_rows([], stage="sft", seed=0)
