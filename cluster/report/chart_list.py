"""List of a report's charts by heading, and the reward-curve numbers of one or several runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.evaluation.results import AVERAGE, VALIDATION, EvaluationRow
from cluster.report.charts import Chart, Series, SeriesKind
from cluster.report.curves import Dialogues, thinned
from cluster.report.metric_charts import (
    age_charts,
    chart_key,
    gauge_charts,
    learner_charts,
    ledger_charts,
    time_charts,
)
from cluster.report.run_rows import RunRows


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartSection:
    """Charts under one heading."""

    key: str
    title: str
    charts: Sequence[Chart]
    lead: str = ""
    """A sentence before them."""


def sections(runs: Sequence[RunRows]) -> list[ChartSection]:
    """The charts of these runs; what has no number is left out."""
    dialogues = [Dialogues.of(run) for run in runs]
    gyms = sorted({gym for run in runs for gym in run.gyms})
    simulators = sorted({name for run in runs for name in run.simulators})
    dots = "dots single steps, " if len(runs) == 1 else ""
    all_sections = [
        ChartSection(
            key="reward",
            title="Reward",
            charts=[reward_chart(runs, dialogues)],
            lead="Lines are moving means over the groups of several steps with Student's 95 % interval, "
            f"{dots}diamonds evaluations with their 95 % intervals.",
        ),
        ChartSection(
            key="gyms", title="By gym", charts=[reward_chart(runs, dialogues, gym=gym) for gym in gyms]
        ),
        ChartSection(
            key="simulators",
            title="By simulator",
            charts=[reward_chart(runs, dialogues, simulator=name) for name in simulators],
        ),
        ChartSection(
            key="time",
            title="Where the time goes",
            charts=time_charts(runs),
            lead="A step's seconds are the driver's, a turn's are the dialogue's.",
        ),
        ChartSection(
            key="ledger",
            title="Ledger",
            charts=ledger_charts(runs),
            lead="In trajectories: issued = trained + dropped + in flight.",
        ),
        ChartSection(key="age", title="Age of what was trained", charts=age_charts(runs)),
        ChartSection(
            key="gauges",
            title="Simulated users",
            charts=gauge_charts(runs),
            lead="Shares that tell when a simulated user has stopped being one.",
        ),
        ChartSection(key="learner", title="Learner and rollouts", charts=learner_charts(runs)),
    ]
    shown = [replace(one, charts=[chart for chart in one.charts if chart.shown]) for one in all_sections]
    return [section for section in shown if section.charts]


def reward_chart(
    runs: Sequence[RunRows], dialogues: Sequence[Dialogues], *, gym: str = "", simulator: str = ""
) -> Chart:
    """Training reward of all dialogues, or of one gym's or one simulator's, and evaluations of the same gym.
    A single run shows its steps, too."""
    alone = len(runs) == 1
    series: list[Series] = []
    window = 0
    gap = max(1.0, 0.04 * max(last_step(run) for run in runs))
    for number, (run, mine) in enumerate(zip(runs, dialogues, strict=True)):
        chosen = np.ones(len(mine.steps), bool)
        if gym:
            chosen &= mine.gyms == gym
        if simulator:
            chosen &= mine.simulators == simulator
        if alone:
            steps, means = mine.step_means(chosen)
            kept = np.isin(steps, thinned(steps))
            series.append(_series("each step", steps[kept], means[kept], kind="dots"))
        curve = mine.curve(chosen)
        window = max(window, curve.window)
        line = _series("mean" if alone else run.name, curve.steps, curve.means, look=number)
        series.append(replace(line, low=curve.lows.tolist(), high=curve.highs.tolist()))
        if not simulator:
            series += _scores(run, gym=gym or AVERAGE, look=number, alone=alone, gap=gap)
    return Chart(
        key=chart_key("reward", "gym" if gym else "simulator" if simulator else "", gym or simulator),
        title=gym or simulator or "Reward of a dialogue",
        series=series,
        note=f"score of a dialogue; means over {window} steps",
    )


def _series(name: str, x: np.ndarray, y: np.ndarray, *, kind: SeriesKind = "line", look: int = 0) -> Series:
    return Series(name=name, x=x.tolist(), y=y.tolist(), kind=kind, look=look)


def _scores(run: RunRows, *, gym: str, look: int, alone: bool, gap: float) -> list[Series]:
    """Scores of test and of validation tasks; `gym` may be the average."""
    found = []
    for number, (name, rows) in enumerate((("test tasks", run.tests), ("validation", run.validations)), 1):
        mine = [row for row in rows if row.gym == gym and row.n]
        found.append(
            Series(
                name=name if alone else f"{run.name}: {name}",
                x=[place_of(row, last=last_step(run), gap=gap) for row in mine],
                y=[row.score for row in mine],
                low=[row.low for row in mine],
                high=[row.high for row in mine],
                labels=[row.stage for row in mine],
                kind="scores",
                look=number if alone else look,
            )
        )
    return found


def last_step(run: RunRows) -> float:
    return float(run.steps[-1]) if len(run.steps) else 0.0


def place_of(row: EvaluationRow, *, last: float, gap: float) -> float:
    """Where an evaluation stands on the axis of steps: untrained and SFT before step 1, GRPO after the
    `last`, each `gap` steps away."""
    if row.stage.startswith(VALIDATION):
        return float(row.stage.removeprefix(VALIDATION))
    return {"untrained": -2.0 * gap, "sft": 1.0 - gap}.get(row.stage, last + gap)
