"""Tables of a report: runs at a glance, evaluations, settings. All cells are texts."""

import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.evaluation.results import AVERAGE, JOINED, MACRO, VALIDATION, EvaluationRow
from cluster.report.run_rows import RunRows

NONE = "–"
DROPPED = "ledger/dropped/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line; its first cell names it."""

    cells: Sequence[str]
    is_total: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    title: str
    names: Sequence[str]
    rows: Sequence[Row]
    is_folded: bool = False
    """Shown when it is asked for."""


def facts(run: RunRows) -> list[tuple[str, str]]:
    """A run in few numbers: name and value."""
    dropped = [run.last(key) or 0.0 for key in run.metrics if key.startswith(DROPPED)]
    found = [
        ("Steps", _steps(run)),
        ("Reward, last step", number(run.last("rollout/reward/mean"))),
        *((f"Test score, {row.stage}", scored(row)) for row in run.tests if row.gym == AVERAGE),
        ("Best validation score", _best(run)),
        ("Dialogues on disk", f"{run.num_dialogues:,}"),
        ("Trajectories issued", whole(run.last("ledger/issued"))),
        ("Trained", whole(run.last("ledger/trained"))),
        ("Dropped", whole(sum(dropped) if dropped else None)),
        ("In flight", whole(run.last("ledger/in_flight"))),
        ("Seconds of a step, median", number(_median(run, "time/step_s"))),
        ("Policy tokens a second, median", whole(_median(run, "rollout/tokens_per_s"))),
        ("Learners idle", percent(_mean_over_time(run, "learner/idle/share"))),
        ("Engines idle", percent(_mean_over_time(run, "engine/idle/share"))),
    ]
    return [(name, value) for name, value in found if value != NONE]


def runs_table(runs: Sequence[RunRows]) -> Table:
    """Key facts of several runs in comparison."""
    of_runs = [dict(facts(run)) for run in runs]
    names = dict.fromkeys(name for of_run in of_runs for name in of_run)
    return Table(
        title="Runs",
        names=["", *(run.name for run in runs)],
        rows=[Row(cells=[name, *(of_run.get(name, NONE) for of_run in of_runs)]) for name in names],
    )


def evaluation_tables(runs: Sequence[RunRows]) -> list[Table]:
    """Test scores by gym and stage, every number of them, and validation scores by step and gym."""
    tests = [(run.name, row) for run in runs for row in run.tests]
    validations = [(run.name, row) for run in runs for row in run.validations]
    alone = len(runs) == 1
    tables = []
    if tests:
        tables += [_by_stage(tests, alone=alone), _every_number(tests, alone=alone, title="tests")]
    if validations:
        tables += [
            _by_step(validations, alone=alone),
            _every_number(validations, alone=alone, title="validations"),
        ]
    return tables


def _by_stage(rows: Sequence[tuple[str, EvaluationRow]], *, alone: bool) -> Table:
    """Gyms down, runs and stages across."""
    columns = list(dict.fromkeys((run, row.stage) for run, row in rows))
    several = len({row.simulator for _, row in rows}) > 1
    lines: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for run, row in rows:
        lines.setdefault((row.gym, row.simulator), {})[(run, row.stage)] = scored(row)
    ordered = sorted(lines, key=lambda line: (line[0] in JOINED, line[1], line[0]))
    return Table(
        title="Test scores",
        names=["gym", *(stage if alone else f"{run}: {stage}" for run, stage in columns)],
        rows=[
            Row(
                cells=[
                    f"{gym} ({simulator})" if several else gym,
                    *(lines[(gym, simulator)].get(column, NONE) for column in columns),
                ],
                is_total=gym in JOINED,
            )
            for gym, simulator in ordered
        ],
    )


def _by_step(rows: Sequence[tuple[str, EvaluationRow]], *, alone: bool) -> Table:
    """Runs and steps down, gyms across."""
    gyms = sorted({row.gym for _, row in rows}, key=lambda gym: (gym in JOINED, gym))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for run, row in rows:
        lines.setdefault((run, row.stage.removeprefix(VALIDATION).lstrip("0") or "0"), {})[row.gym] = scored(
            row
        )
    return Table(
        title="Validation scores",
        names=["step", *gyms],
        rows=[
            Row(cells=[step if alone else f"{run}: {step}", *(line.get(gym, NONE) for gym in gyms)])
            for (run, step), line in lines.items()
        ],
        is_folded=True,
    )


def _every_number(rows: Sequence[tuple[str, EvaluationRow]], *, alone: bool, title: str) -> Table:
    num_trials = max(len(row.pass_hat_k) for _, row in rows)
    trials = range(num_trials)
    names = ["policy", "gym", "simulator", "tasks", "scored", "failed", "score", "low", "high", "published"]
    names += ["turns", "effective", "weighted", *(f"pass^{k + 1}" for k in trials)]
    names += [f"pass@{k + 1}" for k in trials[1:]]
    return Table(
        title=f"Every number of the {title}",
        names=names,
        rows=[
            Row(
                cells=[
                    row.stage if alone else f"{run}: {row.stage}", row.gym, row.simulator, str(row.num_tasks),
                    str(row.n), str(row.num_failed),
                    *map(number, (row.score, row.low, row.high, row.published_score, row.turns)),
                    *map(number, (row.effective_turns, row.time_weighted)),
                    *(number(_at(row.pass_hat_k, k)) for k in trials),
                    *(number(_at(row.pass_at_k, k)) for k in trials[1:]),
                ],
                is_total=row.gym in JOINED,
            )
            for run, row in rows
            if row.gym != MACRO
        ],
        is_folded=True,
    )  # fmt: skip


def differences(runs: Sequence[RunRows]) -> Table:
    """The keys in which the runs' settings differ."""
    settings = [_flat(tomllib.loads(run.toml)) for run in runs]
    keys = dict.fromkeys(key for of_run in settings for key in of_run)
    different = [key for key in keys if len({of_run.get(key, NONE) for of_run in settings}) > 1]
    return Table(
        title="Settings that differ",
        names=["key", *(run.name for run in runs)],
        rows=[Row(cells=[key, *(of_run.get(key, NONE) for of_run in settings)]) for key in different],
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


def scored(row: EvaluationRow) -> str:
    """Example: `0.612 [0.553, 0.671]`."""
    if not row.n:
        return f"all {row.num_failed} failed"
    failed = f", {row.num_failed} failed" if row.num_failed else ""
    return f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]{failed}"


def number(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.4g}"


def whole(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.0%}"


def _at(values: Sequence[float], place: int) -> float | None:
    return values[place] if place < len(values) else None


def _steps(run: RunRows) -> str:
    done = int(run.steps[-1]) if len(run.steps) else 0
    return f"{done} of {run.config.grpo.num_steps}" if run.config else str(done)


def _best(run: RunRows) -> str:
    best = run.folder.best
    return NONE if best is None else f"{best.score:.3f} at step {best.step}"


def _median(run: RunRows, key: str) -> float | None:
    values = [value for value in run.metrics.get(key, ()) if math.isfinite(value)]
    return statistics.median(values) if values else None


def _mean_over_time(run: RunRows, key: str) -> float | None:
    """Mean of a share of steps' time: long steps count more."""
    shares, seconds = run.metrics.get(key), run.metrics.get("time/step_s")
    if shares is None or seconds is None:
        return None
    known = np.isfinite(shares) & np.isfinite(seconds)
    return float(np.average(shares[known], weights=seconds[known])) if seconds[known].sum() else None
