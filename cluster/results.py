"""Evaluation rows: scores with 95 % intervals, `evaluation.json`, and the table at the end.

A failed dialogue is no score: it is left out and counted. Knows no engine and no Ray.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.run_folder import write_whole

AVERAGE = "average"
NUM_RESAMPLES = 10_000
NORMAL_95 = 1.959964
"""The two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one evaluation dialogue ended."""

    gym: str
    simulator: str
    score: float
    """Sum of the turn rewards; NaN where the dialogue failed."""
    num_turns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow:
    """One row of `evaluation.json`; its floats are NaN (there null) where every dialogue failed."""

    stage: str
    """untrained, sft or grpo; elsewhere the policy's name."""
    gym: str
    """A gym, or `average`: the mean over gyms, each counted alike."""
    simulator: str
    n: int
    """Dialogues that were scored."""
    num_failed: int
    score: float
    low: float
    high: float
    """Ends of the 95 % interval of `score`."""
    turns: float
    """Mean number of turns."""


def evaluation_rows(outcomes: Sequence[Outcome], *, stage: str, seed: int) -> list[EvaluationRow]:
    """One row a gym in order of appearance, then their average. Raises `ValueError` without outcomes."""
    if not outcomes:
        raise ValueError("outcomes=[]: an evaluation needs at least one dialogue: give it tasks")
    gyms = list(dict.fromkeys(outcome.gym for outcome in outcomes))
    rows = [_gym_row([o for o in outcomes if o.gym == gym], stage=stage, seed=seed) for gym in gyms]
    return [*rows, average_row(rows)]


def _gym_row(outcomes: Sequence[Outcome], *, stage: str, seed: int) -> EvaluationRow:
    scored = [o for o in outcomes if not math.isnan(o.score)]
    scores = np.array([o.score for o in scored], dtype=np.float64)
    low, high = interval(scores, seed=seed)
    return EvaluationRow(
        stage=stage,
        gym=outcomes[0].gym,
        simulator="+".join(sorted({o.simulator for o in outcomes})),
        n=len(scored),
        num_failed=len(outcomes) - len(scored),
        score=float(scores.mean()) if scored else math.nan,
        low=low,
        high=high,
        turns=sum(o.num_turns for o in scored) / len(scored) if scored else math.nan,
    )


def interval(scores: np.ndarray, *, seed: int) -> tuple[float, float]:
    """95 % interval of the mean: Wilson's (1927) where scores are only 0 or 1, else a seeded bootstrap.

    Wilson's keeps its width where all scores are equal, as an untrained policy's zeros are.
    """
    n = len(scores)
    if n == 0:
        return math.nan, math.nan
    if np.isin(scores, (0.0, 1.0)).all():
        p, z2 = float(scores.mean()), NORMAL_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = NORMAL_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)
    resamples = np.random.default_rng(seed).choice(scores, size=(NUM_RESAMPLES, n)).mean(axis=1)
    low, high = np.quantile(resamples, (0.025, 0.975))
    return float(low), float(high)


def average_row(rows: Sequence[EvaluationRow]) -> EvaluationRow:
    """The mean over gyms; its interval joins theirs as independent strata (MOVER, Zou and Donner 2008)."""
    k = len(rows)
    score = sum(row.score for row in rows) / k
    below = math.sqrt(sum((row.score - row.low) ** 2 for row in rows)) / k
    above = math.sqrt(sum((row.high - row.score) ** 2 for row in rows)) / k
    return EvaluationRow(
        stage=rows[0].stage,
        gym=AVERAGE,
        simulator="+".join(sorted({name for row in rows for name in row.simulator.split("+")})),
        n=sum(row.n for row in rows),
        num_failed=sum(row.num_failed for row in rows),
        score=score,
        low=score - below,
        high=score + above,
        turns=sum(row.turns for row in rows) / k,
    )


def rows_as_json(rows: Sequence[EvaluationRow]) -> dict[str, list[dict[str, object]]]:
    """The form of `evaluation.json`: NaN is null."""
    plain = (asdict(row) for row in rows)
    return {"rows": [{k: None if v != v else v for k, v in row.items()} for row in plain]}


def write_rows(path: Path, rows: Sequence[EvaluationRow]) -> None:
    """Adds rows to the file; a stage that is already there is replaced. Whole or not at all."""
    stages = {row.stage for row in rows}
    kept = [row for row in read_rows(path) if row.stage not in stages]
    write_whole(path, json.dumps(rows_as_json([*kept, *rows]), indent=2) + "\n")


def read_rows(path: Path) -> list[EvaluationRow]:
    """The file's rows; none where there is no file."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        row.update({key: math.nan for key, value in row.items() if value is None})
    return [EvaluationRow(**row) for row in rows]


def print_rows(rows: Sequence[EvaluationRow], *, as_json: bool = False) -> None:
    """One table on stdout: gyms down, stages across; or the JSON of `evaluation.json`."""
    if as_json:
        print(json.dumps(rows_as_json(rows), indent=2))
        return
    stages = list(dict.fromkeys(row.stage for row in rows))
    table = Table(title="score, turns and 95 % interval on held-out tasks", title_style="bold")
    table.add_column("gym")
    table.add_column("user")
    table.add_column("tasks", justify="right")
    for stage in stages:
        table.add_column(stage, justify="right")
    for gym in dict.fromkeys(row.gym for row in rows):
        by_stage = {row.stage: row for row in rows if row.gym == gym}
        some = next(iter(by_stage.values()))
        if gym == AVERAGE:
            table.add_section()
        cells = [_cell(by_stage[stage]) if stage in by_stage else "" for stage in stages]
        style = "bold" if gym == AVERAGE else None
        table.add_row(gym, some.simulator, str(some.n + some.num_failed), *cells, style=style)
    Console().print(table)


def _cell(row: EvaluationRow) -> str:
    if row.n == 0:
        return f"all {row.num_failed} failed"
    failed = f"\n[red]{row.num_failed} failed[/]" if row.num_failed else ""
    return f"{row.score:.3f}  [dim]{row.turns:4.1f}\n\\[{row.low:.3f}, {row.high:.3f}][/]{failed}"
