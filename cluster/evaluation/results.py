"""Evaluation results: one row a gym and simulator with its 95 % interval, their averages, `evaluation.json`,
and the table printed at the end.

Failed dialogues are counted and left out of scores. Knows no engine and no Ray.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.console.events import finite
from cluster.console.output import put_json, result_console
from cluster.evaluation.metrics import (
    SUCCESS_SCORE,
    DialogueOutcome,
    effective_turns,
    interval,
    joined_interval,
    mean,
    pass_curves,
    published_score,
    task_means,
    time_weighted,
)
from cluster.run_folder.atomic_files import write_whole
from simulators.task import Split

AVERAGE, MACRO, MICRO, HELD_OUT = "average", "macro", "micro", "held_out"
JOINED = (AVERAGE, MACRO, MICRO, HELD_OUT)
"""What stands in a row's `gym` where it joins several gyms."""
VALIDATION = "validation-"
"""Before the step, in the stage of validation rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow:
    """One row of `evaluation.json`; its floats are NaN (there null) where every dialogue failed."""

    stage: str
    """untrained, sft or grpo; elsewhere the policy's name."""
    policy: str
    """The policy: a script, a model folder or hub name, an endpoint's model; in a run, the stage."""
    gym: str
    """A gym, or what joins several: `average` and `macro` count gyms alike, `micro` counts tasks alike,
    `held_out` is the macro average of the gyms that were not trained on."""
    simulator: str
    num_tasks: int
    """Tasks that were played."""
    n: int
    """Dialogues that were scored."""
    num_failed: int
    score: float
    """Mean over tasks of the mean over trials."""
    low: float
    high: float
    """Ends of the 95 % interval of `score`."""
    turns: float
    """Mean number of turns."""
    published_score: float = math.nan
    """The released evaluation's number, as `scores.published_score` says."""
    effective_turns: float = math.nan
    time_weighted: float = math.nan
    pass_hat_k: tuple[float, ...] = ()  # [num_trials]
    """pass^k for k = 1, 2, ...; the first is the success rate."""
    pass_at_k: tuple[float, ...] = ()  # [num_trials]
    """Unbiased pass@k for k = 1, 2, ..."""
    split: str = "test"
    """The split of the tasks: checkpoints are selected by validation tasks, never by test tasks."""


def evaluation_rows(
    outcomes: Sequence[DialogueOutcome],
    *,
    stage: str,
    seed: int,
    held_out: Collection[str] = (),
    success_score: float = SUCCESS_SCORE,
    split: Split = "test",
) -> list[EvaluationRow]:
    """For each simulator, in order of appearance: one row a gym, by name, their average and,
    where some of the gyms are held out, these gyms' own. Raises `ValueError` without outcomes."""
    if not outcomes:
        raise ValueError("outcomes=[]: an evaluation needs at least one dialogue: give it tasks")
    rows: list[EvaluationRow] = []
    for simulator in dict.fromkeys(outcome.simulator for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.simulator == simulator]
        # Dialogues end in any order, and the bootstrap's intervals depend on theirs.
        mine.sort(key=lambda outcome: (outcome.gym, outcome.task_id, outcome.trial))
        gyms = sorted({outcome.gym for outcome in mine})
        gym_rows = [
            _gym_row([o for o in mine if o.gym == gym], stage=stage, seed=seed, success_score=success_score)
            for gym in gyms
        ]
        rows += [*gym_rows, joined_row(gym_rows, gym=AVERAGE)]
        apart = [row for row in gym_rows if row.gym in held_out]
        rows += [joined_row(apart, gym=HELD_OUT)] if apart else []
    return [replace(row, split=split) for row in rows]


def validation_score(rows: Sequence[EvaluationRow]) -> float:
    """By what the best checkpoint is chosen: the macro average of validation tasks; NaN where all failed."""
    assert {row.split for row in rows} == {"validation"}, "only validation tasks choose a checkpoint"
    (average,) = [row for row in rows if row.gym == AVERAGE]
    return average.score


def with_summary(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows, and after each average its `macro` (the same under its other name) and `micro` rows."""
    result: list[EvaluationRow] = []
    for row in rows:
        result.append(row)
        if row.gym == AVERAGE:
            of = [r for r in rows if (r.stage, r.simulator) == (row.stage, row.simulator)]
            gym_rows = [r for r in of if r.gym not in JOINED]
            result += [replace(row, gym=MACRO), joined_row(gym_rows, gym=MICRO)]
    return result


def _gym_row(
    outcomes: Sequence[DialogueOutcome], *, stage: str, seed: int, success_score: float
) -> EvaluationRow:
    scores = task_means(outcomes, lambda outcome: outcome.score)
    low, high = interval(scores, seed=seed)
    num_trials = 1 + max(outcome.trial for outcome in outcomes)
    hats, ats = pass_curves(outcomes, num_trials=num_trials, success_score=success_score)
    num_failed = sum(outcome.failed for outcome in outcomes)
    return EvaluationRow(
        stage=stage,
        policy=outcomes[0].policy or stage,
        gym=outcomes[0].gym,
        simulator=outcomes[0].simulator,
        num_tasks=len({outcome.task_id for outcome in outcomes}),
        n=len(outcomes) - num_failed,
        num_failed=num_failed,
        score=mean(scores),
        low=low,
        high=high,
        turns=mean(task_means(outcomes, lambda outcome: outcome.num_turns)),
        published_score=mean(task_means(outcomes, published_score)),
        effective_turns=mean(task_means(outcomes, effective_turns)),
        time_weighted=mean(task_means(outcomes, time_weighted)),
        pass_hat_k=tuple(hats),
        pass_at_k=tuple(ats),
    )


def joined_row(rows: Sequence[EvaluationRow], *, gym: str) -> EvaluationRow:
    """The weighted mean of gyms' rows: by number of tasks for `micro`, else each gym counted alike. Its
    interval joins theirs as independent strata."""
    parts = [row.num_tasks if gym == MICRO else 1 for row in rows]
    weights = [part / sum(parts) for part in parts]

    def joined(values: Sequence[float]) -> float:
        return math.fsum(weight * value for weight, value in zip(weights, values, strict=True))

    scores, intervals = [row.score for row in rows], [(row.low, row.high) for row in rows]
    low, high = joined_interval(scores, intervals, weights)
    return EvaluationRow(
        stage=rows[0].stage,
        policy=rows[0].policy,
        gym=gym,
        simulator="+".join(sorted({row.simulator for row in rows})),
        num_tasks=sum(row.num_tasks for row in rows),
        n=sum(row.n for row in rows),
        num_failed=sum(row.num_failed for row in rows),
        score=joined(scores),
        low=low,
        high=high,
        turns=joined([row.turns for row in rows]),
        published_score=joined([row.published_score for row in rows]),
        effective_turns=joined([row.effective_turns for row in rows]),
        time_weighted=joined([row.time_weighted for row in rows]),
        pass_hat_k=tuple(joined(values) for values in zip(*(row.pass_hat_k for row in rows), strict=True)),
        pass_at_k=tuple(joined(values) for values in zip(*(row.pass_at_k for row in rows), strict=True)),
        split=rows[0].split,
    )


def rows_as_json(rows: Sequence[EvaluationRow]) -> dict[str, list[dict[str, object]]]:
    """The form of `evaluation.json`: NaN is null."""
    return {"rows": [finite(asdict(row)) for row in rows]}


def write_rows(path: Path, rows: Sequence[EvaluationRow]) -> None:
    """Adds rows to the file; a stage that is already there is replaced. Whole or not at all."""
    stages = {row.stage for row in rows}
    kept = [row for row in read_rows(path) if row.stage not in stages]
    write_whole(path, json.dumps(rows_as_json([*kept, *rows]), indent=2) + "\n")


def keep_rows(path: Path, is_kept: Callable[[EvaluationRow], bool]) -> None:
    """Drops the file's other rows."""
    rows = read_rows(path)
    if not all(map(is_kept, rows)):
        write_whole(path, json.dumps(rows_as_json(list(filter(is_kept, rows))), indent=2) + "\n")


def read_rows(path: Path) -> list[EvaluationRow]:
    """The file's rows; none if there is no file."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [read_row(row) for row in rows]


def read_row(row: dict[str, Any]) -> EvaluationRow:
    """The inverse of `rows_as_json` for one row."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, list):
            values[key] = tuple(math.nan if item is None else item for item in value)
        else:
            values[key] = math.nan if value is None else value
    return EvaluationRow(**values)


def print_rows(rows: Sequence[EvaluationRow], *, as_json: bool = False) -> None:
    """One table on stdout: gyms down, stages across; or the JSON of `evaluation.json`."""
    if as_json:
        put_json(rows_as_json(rows))
        return
    if any(row.gym == MACRO for row in rows):  # one name for the same numbers is enough for the eye
        rows = [row for row in rows if row.gym != AVERAGE]
    stages = list(dict.fromkeys(row.stage for row in rows))
    table = Table(title="score, turns and 95 % interval", title_style="bold")
    table.add_column("gym")
    table.add_column("user")
    table.add_column("dialogues", justify="right")
    for stage in stages:
        table.add_column(stage, justify="right")
    before = ""
    for gym, simulator in dict.fromkeys((row.gym, row.simulator) for row in rows):
        by_stage = {row.stage: row for row in rows if (row.gym, row.simulator) == (gym, simulator)}
        some = next(iter(by_stage.values()))
        if (gym in JOINED) != (before in JOINED):
            table.add_section()
        before = gym
        cells = [_cell(by_stage[stage]) if stage in by_stage else "" for stage in stages]
        style = "bold" if gym in JOINED else None
        table.add_row(gym, simulator, str(some.n + some.num_failed), *cells, style=style)
    result_console().print(table)


def _cell(row: EvaluationRow) -> str:
    if row.n == 0:
        return f"all {row.num_failed} failed"
    failed = f"\n[red]{row.num_failed} failed[/]" if row.num_failed else ""
    return f"{row.score:.3f}  [dim]{row.turns:4.1f}\n\\[{row.low:.3f}, {row.high:.3f}][/]{failed}"
