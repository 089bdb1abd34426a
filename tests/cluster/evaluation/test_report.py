"""The report: JSON for programs, Markdown for people, out of the same rows."""

import json
import math
from dataclasses import replace
from pathlib import Path

from actors.trajectory import StopReason
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.report import EvaluationReport, write_report
from cluster.evaluation.results import read_rows


def evaluation(policy: str, *, scores: dict[str, float], simulator: str = "rules") -> EvaluationReport:
    """One dialogue a gym."""
    return EvaluationReport(
        policy=policy,
        settings={"policy": policy, "seed": 0, "note": "a|b"},
        outcomes=[
            DialogueOutcome(
                gym=gym,
                task_id=f"{gym}-0",
                policy=policy,
                simulator=simulator,
                score=score,
                num_turns=2,
                rewards=(0.0, score),
                choices=("action", "answer"),
                contents=("Why?", "F1"),
                stop_reason=StopReason.INVALID_VERDICT if math.isnan(score) else StopReason.TERMINATED,
            )
            for gym, score in scores.items()
        ],
    )


def test_json_has_rows_summary_matrix_and_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "report.json"
    expert = evaluation("expert", scores={"function": 1.0, "travel": 0.5})
    broken = evaluation("m|x", scores={"function": 0.25, "travel": math.nan}, simulator="llm")
    rows = write_report(path, [expert, broken], held_out=["travel"], success_score=0.99)
    assert {row.policy for row in rows} == {"m|x"}
    document = json.loads(path.read_text())
    assert document["summary"]["policy"] == "m|x"
    assert document["summary"]["macro"] is None  # one of its gyms has no score at all
    assert document["summary"]["num_failed"] == 1
    assert document["matrix"] == [
        {"policy": "expert", "simulator": "rules", "macro": 0.75, "micro": 0.75, "held_out": 0.5},
        {"policy": "m|x", "simulator": "llm", "macro": None, "micro": None, "held_out": None},
    ]
    assert document["failures"] == [
        {"policy": "m|x", "simulator": "llm", "gym": "travel", "stop_reason": "invalid_verdict", "n": 1}
    ]
    assert document["settings"]["expert"]["seed"] == 0
    function = document["rows"][0]
    assert (function["policy"], function["gym"], function["pass_hat_k"]) == ("expert", "function", [1.0])


def test_markdown_shows_every_policy_and_simulator_and_stays_a_table(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    expert = evaluation("expert", scores={"function": 1.0})
    model = evaluation("m|x\n`rm`", scores={"function": 0.25}, simulator="llm")
    write_report(path, [expert, model], held_out=[], success_score=0.5)
    page = path.with_suffix(".md").read_text()
    assert "## expert with simulator rules" in page
    assert "Policy × simulator" in page
    assert "Success is a score of at least 0.5" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert any("m\\|x 'rm'" in line for line in tables)
    assert "| function | 1 | 1 | 0 | 1.000 |" in page


def test_rows_of_other_policies_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for policy, score in (("expert", 1.0), ("random", 0.1), ("expert", 0.9)):
        write_report(path, [evaluation(policy, scores={"function": score})], held_out=[], success_score=0.99)
    scores = {(row.policy, row.gym): row.score for row in read_rows(path)}
    assert scores[("random", "function")] == 0.1
    assert scores[("expert", "function")] == 0.9
    assert len(read_rows(path)) == 2 * 4


def test_where_the_time_of_a_turn_went_stands_by_simulator_and_gym(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    expert = evaluation("expert", scores={"function": 1.0, "travel": 1.0})
    function, travel = expert.outcomes
    timed = [
        replace(function, seconds=(3.0, 1.0, 0.0, 0.0, 0.0)),
        replace(function, task_id="function-1", num_turns=6, seconds=(1.0, 1.0, 0.0, 1.0, 1.0)),
        travel,  # of an older journal
    ]
    write_report(path, [replace(expert, outcomes=timed)], held_out=[], success_score=0.99)
    assert json.loads(path.read_text())["times"] == [
        {
            "policy": "expert",
            "simulator": "rules",
            "gym": "function",
            "turn_s": 1.0,
            "policy_share": 0.5,
            "queue_share": 0.25,
            "user_share": 0.0,
            "tool_share": 0.125,
            "reward_share": 0.125,
        }
    ]
    page = path.with_suffix(".md").read_text()
    assert "| expert | rules | function | 1.000 | 0.500 | 0.250 | 0.000 | 0.125 | 0.125 |" in page
