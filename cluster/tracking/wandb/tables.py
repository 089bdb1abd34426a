"""Tables and histograms of dialogues for W&B, read from Parquet with Arrow and NumPy. Does not import W&B and
reads no token ids.

Null numbers (a turn that was not trained on) become None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64
from numpy import ndarray

from cluster.evaluation.outcomes import group_simulators
from cluster.evaluation.results import EvaluationRow
from learners.buffer.credit_columns import CREDITS
from learners.buffer.ledger import TRAINED

LIGHT = ("group_id", "trajectory", "turn", "gym", "failed", "outcome", "simulator", "step")
NUMBERS = ("env_reward", "reward", *CREDITS.names)
"""Of a turn: its rewards, and its credit by the learner (docs/credit.md)."""
TEXTS = ("task_id", "persona", "stop_reason", "error", "system", "opening", "text", "feedback")
VERSIONS = "policy_versions"
"""One per sampled token: its length is the number of tokens."""
MOST_BINS = 40
MATRIX_NUMBERS = ("num_tasks", "n", "num_failed", "score", "low", "high", "turns")
MATRIX_NUMBERS += ("published_score", "effective_turns", "time_weighted")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """Content of a W&B table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HistogramCounts:
    """Content of a W&B histogram."""

    counts: Int64[ndarray, "B"]
    edges: Float64[ndarray, "B+1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMedia:
    """Tables and histograms by their names in W&B."""

    tables: Mapping[str, TextTable]
    histograms: Mapping[str, HistogramCounts]


def step_media(files: Sequence[Path], *, step: int, most_dialogues: int) -> StepMedia:
    """Media of a step's files. Tables show whole groups of different gyms, trained ones first; histograms all
    dialogues that did not fail."""
    light = _read(files, (*LIGHT, "env_reward", "advantage", VERSIONS))
    chosen = choose_groups(light, step=step, most_dialogues=most_dialogues)
    tables: dict[str, TextTable] = {}
    if chosen:
        rows = _read(files, (*LIGHT, *NUMBERS, *TEXTS), groups=chosen)
        tables = {
            "rollout/dialogues": dialogue_table(rows, step=step, groups=chosen),
            "rollout/group": side_by_side(rows, group=chosen[0]),
        }
    return StepMedia(tables=tables, histograms=_histograms(light, step=step))


def evaluation_media(
    file: Path, *, rows: Sequence[EvaluationRow], step: int, most_dialogues: int
) -> StepMedia:
    """Media of an evaluation's file; `rows` are those of all evaluations of its split so far, itself
    included."""
    split = rows[-1].split
    tables = {f"eval/{split}/matrix": evaluation_matrix(rows)}
    if file.exists():
        light = _read([file], LIGHT)
        if chosen := choose_groups(light, step=step, most_dialogues=most_dialogues):
            turns = _read([file], (*LIGHT, *NUMBERS, *TEXTS), groups=chosen)
            tables[f"eval/{split}/dialogues"] = dialogue_table(turns, step=step, groups=chosen)
    return StepMedia(tables=tables, histograms={})


def choose_groups(light: pa.Table, *, step: int, most_dialogues: int) -> list[int]:
    """Ids of whole groups, one gym after the other, with at most `most_dialogues` dialogues in all; at least
    one group unless that is 0. The first gym changes with the step."""
    sizes: dict[str, dict[tuple[bool, int], set[int]]] = {}
    names = ("gym", "group_id", "trajectory")
    gyms, ids, trajectories = (light[name].to_pylist() for name in names)
    outcomes = light["outcome"].to_pylist() if "outcome" in light.column_names else [TRAINED] * len(ids)
    trained = {group for group, outcome in zip(ids, outcomes, strict=True) if outcome == TRAINED}
    for gym, group, trajectory in zip(gyms, ids, trajectories, strict=True):
        groups = sizes.setdefault(gym, {})
        groups.setdefault((group not in trained, group), set()).add(trajectory)
    by_gym = [
        [(group, len(found)) for (_, group), found in sorted(sizes[gym].items())] for gym in sorted(sizes)
    ]
    first = step % max(len(by_gym), 1)
    in_turn = [one for row in zip_longest(*by_gym[first:], *by_gym[:first]) for one in row if one]
    chosen: list[int] = []
    num_left = most_dialogues
    for group, size in in_turn:
        if num_left > 0 and (size <= num_left or not chosen):
            chosen.append(group)
            num_left -= size
    return chosen


COLUMNS = ("step", "gym", "task", "group", "dialogue", "turn", "policy", "user", *NUMBERS)
COLUMNS += ("stop_reason", "outcome", "simulator", "persona", "system", "error")


def dialogue_table(rows: pa.Table, *, step: int, groups: Sequence[int]) -> TextTable:
    """Both sides of each dialogue, one row per turn; turn 0 is the system prompt and the user's opening."""
    lines: list[Sequence[Any]] = []
    simulators = _simulators(rows)
    nothing = [None] * len(NUMBERS)
    rows = rows.filter(pc.field("group_id").isin(list(groups)))
    for row in sorted(rows.to_pylist(), key=lambda row: groups.index(row["group_id"])):
        group = row["group_id"]
        keys = (step, row["gym"], row["task_id"], group, row["trajectory"])
        facts = (row["stop_reason"], row.get("outcome") or "evaluated", simulators[group], row["persona"])
        if row["turn"] == 0:
            lines.append((*keys, 0, "", row["opening"], *nothing, *facts, row["system"], row["error"]))
        numbers = [_finite(row.get(name)) for name in NUMBERS]
        lines.append((*keys, row["turn"] + 1, row["text"], row["feedback"], *numbers, *facts, "", ""))
    return TextTable(columns=COLUMNS, rows=lines)


def side_by_side(rows: pa.Table, *, group: int) -> TextTable:
    """One group, one column per dialogue: task, stop reason and score, then per turn the policy's text, the
    user's reply, reward and credit."""
    dialogues: dict[int, list[dict[str, Any]]] = {}
    for row in rows.filter(pc.field("group_id") == group).to_pylist():
        dialogues.setdefault(row["trajectory"], []).append(row)
    scores = [sum(turn["env_reward"] for turn in turns) for turns in dialogues.values()]
    ends = [turns[0]["stop_reason"] for turns in dialogues.values()]
    lines = [
        ("task", *(f"{turns[0]['task_id']}\n{turns[0]['opening']}" for turns in dialogues.values())),
        ("end", *(f"{end}, score {score:.3f}" for end, score in zip(ends, scores, strict=True))),
    ]
    for number, turns in enumerate(zip_longest(*dialogues.values()), 1):
        lines.append((f"turn {number}", *("" if turn is None else _turn_cell(turn) for turn in turns)))
    columns = ("turn", *(f"dialogue {number}" for number in dialogues))
    return TextTable(columns=columns, rows=lines)


def evaluation_matrix(rows: Sequence[EvaluationRow]) -> TextTable:
    """Policy × simulator × gym: one row per row of evaluation.json."""
    columns = ("stage", "policy", "simulator", "gym", *MATRIX_NUMBERS, "success")
    lines = [
        (
            *(row.stage, row.policy, row.simulator, row.gym),
            *(_finite(getattr(row, name)) for name in MATRIX_NUMBERS),
            _finite(row.pass_hat_k[0]) if row.pass_hat_k else None,
        )
        for row in rows
    ]
    return TextTable(columns=columns, rows=lines)


def _turn_cell(row: Mapping[str, Any]) -> str:
    """Text of one turn."""
    numbers = [
        f"{name} {value:+.3f}"
        for name in ("reward", *CREDITS.names)
        if (value := _finite(row.get(name))) is not None
    ]
    return "\n".join([f"POLICY: {row['text']}", f"USER: {row['feedback']}", " | ".join(numbers)])


def _simulators(rows: pa.Table) -> dict[int, str]:
    """Simulator of each group by id; the rules if no user was called, as in the metrics."""
    first_rows = np.flatnonzero(rows["turn"].to_numpy() == 0)
    ids = rows["group_id"].to_numpy()[first_rows].tolist()
    names = group_simulators(rows["simulator"].to_pylist(), starts=first_rows.tolist(), groups=ids)
    return dict(zip(ids, names, strict=True))


def _histograms(light: pa.Table, *, step: int) -> dict[str, HistogramCounts]:
    """Histograms of turns, score and sampled tokens over dialogues that did not fail; of the age of the
    oldest token (as in `buffer/age`) and of advantages over trained turns."""
    first_rows = np.flatnonzero(light["turn"].to_numpy() == 0)
    if not len(first_rows):
        return {}
    kept = ~light["failed"].to_numpy(zero_copy_only=False)[first_rows]
    turns = np.diff([*first_rows, light.num_rows])
    versions = light[VERSIONS].combine_chunks()
    num_tokens = np.diff(versions.offsets.to_numpy())
    scores = np.add.reduceat(light["env_reward"].to_numpy(), first_rows)
    lengths = np.add.reduceat(num_tokens, first_rows)
    found = {
        "rollout/turns/histogram": turns[kept],
        "rollout/reward/histogram": scores[kept],
        "rollout/length/histogram": lengths[kept],
    }
    trained = np.array(light["outcome"].to_pylist()) == TRAINED
    spoken = trained & (num_tokens > 0)
    if spoken.any():
        starts = versions.offsets.to_numpy()[:-1][num_tokens > 0]
        oldest = np.zeros(light.num_rows, np.int64)
        oldest[num_tokens > 0] = np.minimum.reduceat(versions.values.to_numpy(), starts)
        found["ledger/buffer/age/histogram"] = step - 1 - oldest[spoken]
    found["train/advantage/histogram"] = light["advantage"].drop_null().to_numpy()
    return {key: counts for key, values in found.items() if (counts := histogram(values)) is not None}


def histogram(values: ndarray) -> HistogramCounts | None:
    """Integers get a bin each if their range is small; None if no value is finite."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer) and high - low < MOST_BINS:
        edges = np.arange(low - 0.5, high + 1.0)
    else:
        edges = np.histogram_bin_edges(values, bins=MOST_BINS)
    return HistogramCounts(counts=np.histogram(values, bins=edges)[0], edges=edges)


def _read(files: Sequence[Path], columns: Sequence[str], *, groups: Sequence[int] | None = None) -> pa.Table:
    """These columns of all files, if present, with the rows of all groups or of `groups`."""
    tables: list[pa.Table] = []
    for file in files:
        names = set(pq.read_schema(file).names)
        wanted = [name for name in columns if name in names]
        rows = None if groups is None else pc.field("group_id").isin(list(groups))
        tables.append(pq.read_table(file, columns=wanted, filters=rows))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else value
