"""Dialogues for the report, read from Parquet: texts, rewards and credit of each turn, sampled tokens."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.trajectory_table import TURN_STAGES
from cluster.report.run_rows import MOST_FILES_KEPT, FileDialogues, RunRows
from learners.buffer.credit_columns import CREDITS

SECONDS = tuple(f"{stage}_s" for stage in TURN_STAGES)
TEXTS = (
    *("trajectory", "gym", "task_id", "stop_reason", "error", "system", "opening", "text"),
    *("choice", "content", "feedback", "env_reward", "reward", "gold", "persona", "user_model", "user_facts"),
    *("outcome", "completion_ids", *SECONDS, *CREDITS.names),
)
TOKENS = ("completion_ids", "behavior_logprobs", "policy_versions")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chosen:
    """A group of dialogues that a report shows."""

    run: int
    """Index of its run among the report's."""
    file: FileDialogues
    group: int
    """Among the file's."""
    rank: int
    """Drawn from its place: groups of low rank stay where there is no room for all."""
    size: int
    """Dialogues of it."""


def choose(runs: Sequence[RunRows], *, most: int) -> list[Chosen]:
    """Whole groups with at most `most` dialogues together, by rank: all of them, or an even sample of every
    file."""
    groups = [
        Chosen(run=number, file=file, group=group, rank=_rank(run, file, group), size=size)
        for number, run in enumerate(runs)
        for file in run.files
        for group, size in enumerate(np.bincount(file.groups).tolist())
    ]
    kept, num_dialogues = [], 0
    for one in sorted(groups, key=lambda one: one.rank):
        num_dialogues += one.size
        if num_dialogues > most:
            break
        kept.append(one)
    return kept


def _rank(run: RunRows, file: FileDialogues, group: int) -> int:
    return zlib.crc32(f"{run.name}/{file.path.name}/{group}".encode())


def read_dialogues(chosen: Sequence[Chosen]) -> list[dict[str, Any]]:
    """The dialogues of these groups, a JSON object each, in order of run, stage, step and place in the file;
    `place` is (file, group, trajectory)."""
    by_file: dict[FileDialogues, tuple[int, dict[int, int]]] = {}
    for one in chosen:
        by_file.setdefault(one.file, (one.run, {}))[1][one.group] = one.rank
    dialogues = [
        {"run": run, "rank": ranks[dialogue["place"][1]], **dialogue}
        for file, (run, ranks) in by_file.items()
        for dialogue in _read_groups(file, tuple(sorted(ranks)))
    ]
    order = {"untrained": 0, "sft": 1}
    dialogues.sort(
        key=lambda one: (one["run"], order.get(one["stage"], 2), one["step"], one["stage"], one["place"])
    )
    return dialogues


@lru_cache(maxsize=MOST_FILES_KEPT)
def _read_groups(file: FileDialogues, groups: tuple[int, ...]) -> list[dict[str, Any]]:
    """The dialogues of these groups of a file. A rewritten file is another `FileDialogues`."""
    with pq.ParquetFile(file.path) as parquet:
        names = set(parquet.schema_arrow.names)
        table = parquet.read([name for name in TEXTS if name in names]).combine_chunks()
    borders = np.append(file.first_rows, file.num_rows)
    found: list[dict[str, Any]] = []
    for group in groups:
        mine = np.flatnonzero(file.groups == group)
        first, end = int(borders[mine[0]]), int(borders[mine[-1] + 1])
        part = table.slice(first, end - first)
        num_tokens = pc.call_function("list_value_length", [part["completion_ids"]]).to_numpy()
        rows = part.drop_columns(["completion_ids"]).to_pylist()
        for one in mine.tolist():
            start, stop = int(borders[one]) - first, int(borders[one + 1]) - first
            found.append(
                {
                    "stage": file.stage,
                    "step": int(file.steps[one]),
                    "place": (file.path.name, group, rows[start]["trajectory"]),
                    "rows": (int(borders[one]), int(borders[one + 1])),
                    "simulator": file.simulators[one],
                    "num_tokens": int(num_tokens[start:stop].sum()),
                    "score": _short(float(file.scores[one])),
                    **_dialogue(rows[start:stop]),
                }
            )
    return found


def _dialogue(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    return {
        "gym": first["gym"],
        "task": first["task_id"],
        "persona": first["persona"],
        "stop": first["stop_reason"],
        "outcome": first.get("outcome") or "evaluated",
        "error": first["error"],
        "system": first["system"],
        "opening": first["opening"],
        "gold": first["gold"],
        "reward": _short(sum(row["reward"] for row in rows)),
        "turns": [
            {
                "text": row["text"],
                "choice": row["choice"],
                "content": row["content"],
                "feedback": row["feedback"],
                "env": _short(row["env_reward"]),
                "reward": _short(row["reward"]),
                **_credits(row),
                "seconds": [_short(row.get(name) or 0.0) for name in SECONDS],
                "facts": row["user_facts"],
                "model": row["user_model"],
            }
            for row in rows
        ],
    }


def _short(value: float) -> float | None:
    """Rounded to what is shown; None where it is no number."""
    return round(value, 4) if math.isfinite(value) else None


def _credits(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What the learner made of a turn, as archived: nothing where it did not learn from it, in evaluations,
    and in files of older versions."""
    found = {name: _short(row[name]) for name in CREDITS.names if row.get(name) is not None}
    return {"advantage": None, **found}


def read_tokens(path: Path, spans: Sequence[tuple[int, int]]) -> list[list[dict[str, Any]]]:
    """The sampled tokens of dialogues, given as (first row, row after the last), turn by turn: `ids`,
    `logprobs` in thousandths (None where one is no number) and `versions`, one number where all are alike."""
    with pq.ParquetFile(path) as parquet:
        table = parquet.read(list(TOKENS)).combine_chunks()
    columns = [table[name].combine_chunks() for name in TOKENS]
    return [
        [_turn_tokens(*(column[row].values for column in columns)) for row in range(*span)] for span in spans
    ]


def _turn_tokens(ids: pa.Array, logprobs: pa.Array, versions: pa.Array) -> dict[str, Any]:
    values, of = logprobs.to_numpy(), versions.to_pylist()
    return {
        "ids": ids.to_pylist(),
        "logprobs": [round(value * 1000) if math.isfinite(value) else None for value in values.tolist()],
        "versions": of[0] if len(set(of)) == 1 else of,
    }
