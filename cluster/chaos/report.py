"""Output of `userrl chaos`: recovery time by kind of fault, losses, and rewards with faults next to those
without."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cluster.chaos.audit import ChaosAudit, rewards
from cluster.chaos.faults import FaultKind, summary_by_kind
from cluster.evaluation.results import AVERAGE, read_rows
from cluster.run_folder.paths import RunFolder

BLOCKS = 8
"""Lines of the table of rewards."""


def print_chaos(
    recoveries: Sequence[tuple[FaultKind, float]],
    accounts: ChaosAudit,
    *,
    completed: bool,
    disturbed: Sequence[RunFolder],
    calm: RunFolder,
) -> None:
    """Prints all of it on stdout."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(recovery_table(recoveries, completed=completed))
    console.print(
        f"groups: lost {accounts.lost}, duplicated {accounts.duplicated}, stale {accounts.stale} "
        f"(from the rows in {', '.join(str(one.trajectories) for one in disturbed)} and the last checkpoint)"
    )
    console.print(reward_table([rewards(one.metrics) for one in disturbed], rewards(calm.metrics)))
    for folder in (*disturbed, calm):
        for row in read_rows(folder.evaluation):
            if row.stage == "grpo" and row.gym == AVERAGE:
                console.print(f"{folder.path.name}: score {row.score:.3f} ({row.low:.3f} to {row.high:.3f})")


def recovery_table(recoveries: Sequence[tuple[FaultKind, float]], *, completed: bool) -> Table:
    """Seconds until a fault was mended, by kind."""
    end = "completed" if completed else "did not complete"
    table = Table(title=f"{len(recoveries)} faults; the run {end}")
    for column in ("fault", "times", "recovery p50 s", "max s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for kind, seconds in summary_by_kind(recoveries).items():
        times = sum(one == kind for one, _ in recoveries)
        table.add_row(kind, str(times), f"{seconds['p50']:.1f}", f"{seconds['max']:.1f}")
    return table


def reward_table(disturbed: Sequence[dict[int, float]], calm: dict[int, float]) -> Table:
    """Mean rewards of blocks of steps: of all disturbed runs together, and of the calm one."""
    table = Table(title="mean reward")
    for column in ("steps", "with faults", "without"):
        table.add_column(column, justify="right")
    last = max((step for curve in (*disturbed, calm) for step in curve), default=0)
    size = max(1, math.ceil(last / BLOCKS))
    for begin in range(1, last + 1, size):
        steps = range(begin, min(begin + size, last + 1))
        table.add_row(f"{steps[0]}-{steps[-1]}", _mean(disturbed, steps), _mean([calm], steps))
    return table


def _mean(curves: Sequence[dict[int, float]], steps: range) -> str:
    values = [curve[step] for curve in curves for step in steps if step in curve]
    return f"{sum(values) / len(values):.3f}" if values else "-"
