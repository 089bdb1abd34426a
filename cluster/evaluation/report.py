"""Report of `userrl evaluate`: one JSON file and one Markdown page from the same rows.

Does not play dialogues; `cluster/evaluation/resume_log.py` stores them.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from actors.trajectory_table import TURN_STAGES
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import (
    AVERAGE,
    HELD_OUT,
    JOINED,
    MACRO,
    MICRO,
    EvaluationRow,
    evaluation_rows,
    read_rows,
    rows_as_json,
    with_summary,
)
from cluster.run_folder.atomic_files import write_whole
from simulators.task import Split

LEGEND = """\
`score` is the mean over tasks of the mean over trials, with a 95 % interval that resamples tasks; a failed
dialogue is counted and never scored. `published` is the number of the released evaluation, comparable with it
only under `preset = "published"`. `effective` is the mean number of the last turn with a reward, `weighted`
is the sum of rewards divided by their turn's number. `pass^k`: all of k trials reach the success score;
`pass@k`: one of them. `macro` counts gyms alike, `micro` tasks alike, `held_out` is the macro average of the
gyms kept out of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """One policy's dialogues, and what they were played under."""

    policy: str
    settings: Mapping[str, object]
    """As JSON: all that decides how the dialogues go, and so whether two evaluations may be compared."""
    outcomes: Sequence[DialogueOutcome]


def rows_of(
    evaluation: EvaluationReport, *, held_out: Collection[str], success_score: float
) -> list[EvaluationRow]:
    """Its gyms' rows and their averages, simulator by simulator."""
    rows = evaluation_rows(
        evaluation.outcomes,
        stage=evaluation.policy,
        seed=0,
        held_out=held_out,
        success_score=success_score,
        split=cast("Split", evaluation.settings.get("split", "test")),
    )
    return with_summary(rows)


def write_report(
    path: Path, evaluations: Sequence[EvaluationReport], *, held_out: Collection[str], success_score: float
) -> list[EvaluationRow]:
    """Writes `path` and the Markdown file next to it; returns the rows of the last evaluation.

    Rows that are in the file already and belong to none of the evaluations stay there.
    """
    groups = [rows_of(e, held_out=held_out, success_score=success_score) for e in evaluations]
    mine = {evaluation.policy for evaluation in evaluations}
    others = [row for row in read_rows(path) if row.stage not in mine]
    rows = [*others, *(row for group in groups for row in group)]
    document = {
        **rows_as_json(rows),
        "summary": summary(groups[-1], success_score=success_score),
        "matrix": matrix(rows),
        "times": [row for evaluation in evaluations for row in times(evaluation)],
        "failures": [failure for evaluation in evaluations for failure in failures(evaluation)],
        "settings": {evaluation.policy: dict(evaluation.settings) for evaluation in evaluations},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(document, indent=2) + "\n")
    write_whole(
        path.with_suffix(".md"), to_markdown(rows, evaluations=evaluations, success_score=success_score)
    )
    return groups[-1]


def summary(rows: Sequence[EvaluationRow], *, success_score: float) -> dict[str, object]:
    """One policy in few numbers, each the mean over its simulators."""

    def over_simulators(gym: str, name: str) -> float | None:
        values = [getattr(row, name) for row in rows if row.gym == gym]
        value = sum(values) / len(values) if values else math.nan
        return None if math.isnan(value) else value

    return {
        "policy": rows[0].policy,
        "simulators": list(dict.fromkeys(row.simulator for row in rows)),
        "micro": over_simulators(MICRO, "score"),
        "macro": over_simulators(MACRO, "score"),
        "held_out": over_simulators(HELD_OUT, "score"),
        "published_micro": over_simulators(MICRO, "published_score"),
        "effective_turns": over_simulators(MICRO, "effective_turns"),
        "time_weighted": over_simulators(MICRO, "time_weighted"),
        "num_failed": sum(row.num_failed for row in rows if row.gym not in JOINED),
        "success_score": success_score,
    }


def matrix(rows: Sequence[EvaluationRow]) -> list[dict[str, object]]:
    """Policy × simulator: one entry a pair, with its macro, micro and held-out averages."""
    cells: dict[tuple[str, str], dict[str, object]] = {}
    for row in rows:
        if row.gym in (MACRO, MICRO, HELD_OUT):
            pair: dict[str, object] = {"policy": row.policy, "simulator": row.simulator}
            cell = cells.setdefault((row.policy, row.simulator), pair)
            cell[row.gym] = None if math.isnan(row.score) else row.score
    return list(cells.values())


def failures(evaluation: EvaluationReport) -> list[dict[str, object]]:
    """How many dialogues failed, by simulator, gym and stop reason."""
    counts = Counter(
        (outcome.simulator, outcome.gym, str(outcome.stop_reason))
        for outcome in evaluation.outcomes
        if outcome.failed
    )
    return [
        {"policy": evaluation.policy, "simulator": simulator, "gym": gym, "stop_reason": reason, "n": n}
        for (simulator, gym, reason), n in counts.items()
    ]


def times(evaluation: EvaluationReport) -> list[dict[str, object]]:
    """Seconds of a mean turn, by simulator and gym, and each stage's share of them; see docs/speed.md."""
    groups: dict[tuple[str, str], list[DialogueOutcome]] = {}
    for outcome in evaluation.outcomes:
        if outcome.seconds and outcome.num_turns:
            groups.setdefault((outcome.simulator, outcome.gym), []).append(outcome)
    rows: list[dict[str, object]] = []
    for (simulator, gym), outcomes in groups.items():
        spent = [math.fsum(parts) for parts in zip(*(one.seconds for one in outcomes), strict=True)]
        total = math.fsum(spent)
        row = {"policy": evaluation.policy, "simulator": simulator, "gym": gym}
        turn_s = total / sum(outcome.num_turns for outcome in outcomes)
        shares = {
            f"{stage}_share": part / max(total, 1e-9) for stage, part in zip(TURN_STAGES, spent, strict=True)
        }
        rows.append({**row, "turn_s": turn_s, **shares})
    return rows


def to_markdown(
    rows: Sequence[EvaluationRow], *, evaluations: Sequence[EvaluationReport], success_score: float
) -> str:
    """The page: a table for each policy and simulator, the matrix, what failed, the settings."""
    parts = ["# Evaluation", "", LEGEND, f"Success is a score of at least {success_score:g}.", ""]
    for stage, simulator in dict.fromkeys((row.stage, row.simulator) for row in rows):
        mine = [row for row in rows if (row.stage, row.simulator) == (stage, simulator)]
        has_macro = any(row.gym == MACRO for row in mine)
        parts += [f"## {_text(stage)} with simulator {_text(simulator)}", ""]
        parts += [*_table([row for row in mine if not (has_macro and row.gym == AVERAGE)]), ""]
    if len(cells := matrix(rows)) > 1:
        parts += ["## Policy × simulator (macro average)", "", *_matrix_table(cells), ""]
    failed = [failure for evaluation in evaluations for failure in failures(evaluation)]
    if failed:
        keys = ("policy", "simulator", "gym", "stop_reason", "n")
        parts += [
            "## Dialogues that failed",
            "",
            *_grid(keys, [[f[key] for key in keys] for f in failed]),
            "",
        ]
    spent = [row for evaluation in evaluations for row in times(evaluation)]
    if spent:
        lines = [[_cell(value) for value in row.values()] for row in spent]
        parts += ["## Where a turn's time went", "", *_grid(list(spent[0]), lines), ""]
    for evaluation in evaluations:
        settings = [(key, json.dumps(value)) for key, value in evaluation.settings.items()]
        parts += [
            f"## Settings of {_text(evaluation.policy)}",
            "",
            *_grid(("setting", "value"), settings),
            "",
        ]
    return "\n".join(parts)


def _table(rows: Sequence[EvaluationRow]) -> list[str]:
    num_trials = max(len(row.pass_hat_k) for row in rows)
    trials = range(1, 1 + num_trials)
    names = ["gym", "tasks", "scored", "failed", "score", "95 % interval", "published", "turns"]
    names += [
        "effective",
        "weighted",
        *(f"pass^{k}" for k in trials),
        *(f"pass@{k}" for k in trials if k > 1),
    ]
    lines = [
        [
            row.gym, row.num_tasks, row.n, row.num_failed, _number(row.score),
            f"{_number(row.low)} – {_number(row.high)}", _number(row.published_score), _number(row.turns),
            _number(row.effective_turns), _number(row.time_weighted),
            *_numbers(row.pass_hat_k, length=num_trials), *_numbers(row.pass_at_k[1:], length=num_trials - 1),
        ]
        for row in rows
    ]  # fmt: skip
    return _grid(names, lines)


def _matrix_table(cells: Sequence[Mapping[str, object]]) -> list[str]:
    simulators = list(dict.fromkeys(cell["simulator"] for cell in cells))
    scores = {(cell["policy"], cell["simulator"]): cell.get(MACRO) for cell in cells}
    policies = list(dict.fromkeys(cell["policy"] for cell in cells))
    lines = [[policy, *(_number(scores.get((policy, name))) for name in simulators)] for policy in policies]
    return _grid(["policy", *simulators], lines)


def _grid(names: Sequence[object], lines: Sequence[Sequence[object]]) -> list[str]:
    rows = [names, ["---"] * len(names), *lines]
    return ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]


def _numbers(values: Sequence[float], *, length: int) -> list[str]:
    """Cells; a row of fewer trials has fewer of these numbers."""
    return [_number(values[i] if i < len(values) else None) for i in range(length)]


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) and not math.isnan(value) else "–"


def _cell(value: object) -> object:
    return _number(value) if isinstance(value, float) else value


def _text(cell: object) -> str:
    """One Markdown cell: no line break, no bar, no code."""
    return " ".join(str(cell).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
