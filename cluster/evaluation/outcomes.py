"""Outcomes of evaluation dialogues: extracted from rollout tables, written as JSON objects and Parquet
rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.trajectory import StopReason
from actors.trajectory_table import TURN_STAGES
from cluster.evaluation.metrics import SUCCESS_SCORE, DialogueOutcome, published_score
from learners.buffer.archive import write_tables
from simulators.user import RULES, WEB

SCHEMA = pa.schema(
    [
        ("policy", pa.string()),
        ("gym", pa.string()),
        ("simulator", pa.string()),
        ("persona", pa.string()),
        ("task_id", pa.string()),
        ("trial", pa.int32()),
        ("score", pa.float64()),
        ("published_score", pa.float64()),
        ("success", pa.bool_()),
        ("num_turns", pa.int32()),
        ("stop_reason", pa.string()),
        ("failed", pa.bool_()),
        ("error", pa.string()),
        ("opening", pa.string()),
        ("rewards", pa.list_(pa.float64())),
        ("choices", pa.list_(pa.string())),
        ("contents", pa.list_(pa.string())),
        ("feedbacks", pa.list_(pa.string())),
        ("num_aspects", pa.int32()),
        *((f"{stage}_s", pa.float64()) for stage in TURN_STAGES),
    ]
)
"""A row a dialogue; `score`, `published_score` and `success` are null where it failed, seconds where they are
not known."""
COLUMNS = ("trajectory", "gym", "task_id", "stop_reason", "failed", "error", "opening", "text", "choice")
COLUMNS += ("content", "feedback", "env_reward", "persona", "is_turn")
COLUMNS += tuple(f"{stage}_s" for stage in TURN_STAGES)
NO_ASPECTS: Mapping[str, int] = {}
TUPLES = ("rewards", "choices", "contents", "feedbacks", "seconds")


def outcomes_of(
    table: pa.Table, *, policy: str, simulator: str, num_aspects: Mapping[str, int] = NO_ASPECTS
) -> list[DialogueOutcome]:
    """The outcomes of one group, trial by trial, from its table `without_tokens`
    (learners/buffer/fixed_work_source.py).

    `num_aspects` is by task id; 1 where it does not say."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in table.select(COLUMNS).to_pylist():
        rows.setdefault(row["trajectory"], []).append(row)
    return [
        _outcome(rows[trial], trial=trial, policy=policy, simulator=simulator, num_aspects=num_aspects)
        for trial in sorted(rows)
    ]


def _outcome(
    rows: Sequence[Mapping[str, Any]],
    *,
    trial: int,
    policy: str,
    simulator: str,
    num_aspects: Mapping[str, int],
) -> DialogueOutcome:
    first, turns = rows[0], [row for row in rows if row["is_turn"]]
    rewards = tuple(float(row["env_reward"]) for row in turns)
    return DialogueOutcome(
        policy=policy,
        gym=first["gym"],
        simulator=simulator,
        persona=first["persona"],
        task_id=first["task_id"],
        trial=trial,
        score=math.nan if first["failed"] else math.fsum(rewards),
        num_turns=len(turns),
        stop_reason=StopReason(first["stop_reason"]),
        error=first["error"],
        opening=first["opening"],
        rewards=rewards,
        choices=tuple(row["choice"] or "" for row in turns),
        contents=tuple(row["text"] if row["content"] is None else row["content"] for row in turns),
        feedbacks=tuple(row["feedback"] for row in turns),
        seconds=tuple(math.fsum(row[f"{stage}_s"] for row in rows) for stage in TURN_STAGES),
        num_aspects=num_aspects.get(first["task_id"], 1),
    )


def to_json(outcome: DialogueOutcome) -> dict[str, Any]:
    """A failed dialogue's score is null."""
    return asdict(outcome) | {"score": None if outcome.failed else outcome.score}


def from_json(data: Mapping[str, Any]) -> DialogueOutcome:
    """The inverse of `to_json`. Raises TypeError, KeyError or ValueError for anything else."""
    score = math.nan if data["score"] is None else float(data["score"])
    values: dict[str, Any] = {**data, "score": score, "stop_reason": StopReason(data["stop_reason"])}
    values.update({name: tuple(data[name]) for name in TUPLES})
    return DialogueOutcome(**values)


def write_parquet(
    path: Path, outcomes: Sequence[DialogueOutcome], *, success_score: float = SUCCESS_SCORE
) -> None:
    """One row a dialogue. Whole or not at all; raises OSError."""
    rows = [
        asdict(outcome)
        | {
            "score": None if outcome.failed else outcome.score,
            "published_score": None if outcome.failed else published_score(outcome),
            "success": None if outcome.failed else outcome.score >= success_score,
            "stop_reason": str(outcome.stop_reason),
            "failed": outcome.failed,
            **{f"{stage}_s": spent for stage, spent in zip(TURN_STAGES, outcome.seconds, strict=False)},
        }
        for outcome in outcomes
    ]
    write_tables(path, [pa.Table.from_pylist(rows, schema=SCHEMA)])


def group_simulators(
    answerers: Sequence[str], *, starts: Sequence[int], groups: Sequence[int]
) -> list[str]:  # [D]
    """Simulator of each dialogue; a group has one. If no user was asked in the whole group: the rules, as in
    the metrics (`cluster/tracking/step_metrics.py`)."""
    of_group: dict[int, str] = {}
    ends = [*starts[1:], len(answerers)]
    for group, start, end in zip(groups, starts, ends, strict=True):
        if group not in of_group:
            names = (name for name in answerers[start:end] if name not in ("", WEB))
            if found := next(names, None):
                of_group[group] = found
    return [of_group.get(group, RULES) for group in groups]
