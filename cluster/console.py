"""What a person sees of a run: a line a step, bars for stages; on stderr, since stdout is for results."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

STAGES = ("wait", "update", "sync", "weights", "report")
"""What the driver does in a step; `time/<stage>_s` in its metrics."""
SPARSE_LINES = 10
"""Lines that a stage prints where the output is no terminal."""
Advance = Callable[[int, str], None]
"""(how much more is done, a note such as `loss 1.23`)."""


def quiet_libraries() -> None:
    """Keeps what Ray logs for its own developers off a person's screen; errors still show."""
    for noisy in ("ray", "ray.rllib", "ray.serve", "ray.tune", "ray._private"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def say(line: str) -> None:
    """Prints one line for people."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)


def step_line(step: int, *, num_steps: int, metrics: Mapping[str, float]) -> str:
    """One step for people.

    Example: `step 12/60 | 4.2s | reward 0.41 | turns 5.2 | lag 0 | 8.1k tok/s | idle learner 6% engine 2% |
    dropped flat 16 | ledger 640 = 512 + 112 + 16` (issued = trained + dropped + in flight, in trajectories).
    """
    dropped = {
        k.removeprefix("ledger/dropped/"): v for k, v in metrics.items() if k.startswith("ledger/dropped/")
    }
    issued, trained, in_flight = (metrics[f"ledger/{name}"] for name in ("issued", "trained", "in_flight"))
    parts = [
        f"step {step}/{num_steps}",
        f"{metrics['time/step_s']:.1f}s",
        f"reward {metrics['rollout/reward/mean']:.2f}",
        f"turns {metrics['rollout/turns/mean']:.1f}",
        f"lag {metrics['buffer/age/max']:g}",
        f"{metrics['rollout/tokens_per_s'] / 1000:.1f}k tok/s",
        f"idle learner {metrics['learner/idle/share']:.0%} engine {metrics['engine/idle/share']:.0%}",
        "dropped " + (" ".join(f"{reason} {count:.0f}" for reason, count in dropped.items() if count) or "0"),
        f"ledger {issued:.0f} = {trained:.0f} + {sum(dropped.values()):.0f} + {in_flight:.0f}",
    ]
    return " | ".join(parts)


def times_line(steps: Sequence[Mapping[str, float]]) -> str:
    """Where the time of these steps went, for people; of each share the mean, long steps counting more.

    Example: `60 steps of 4.2s: wait 12% update 81% sync 0% weights 3% report 4% | idle learner 16% engine 2%`
    """
    total_s = sum(step["time/step_s"] for step in steps)
    shares = {stage: sum(step[f"time/{stage}_s"] for step in steps) / total_s for stage in STAGES}
    idle = {
        who: sum(step[f"{who}/idle/share"] * step["time/step_s"] for step in steps) / total_s
        for who in ("learner", "engine")
    }
    stages, idlers = (" ".join(f"{name} {share:.0%}" for name, share in x.items()) for x in (shares, idle))
    return f"{len(steps)} steps of {total_s / len(steps):.1f}s: {stages} | idle {idlers}"


@contextmanager
def stage_progress(title: str, *, total: int) -> Iterator[Advance]:
    """A progress bar on a terminal, about ten lines elsewhere.

    Example: `with stage_progress("evaluate sft", total=600) as advance: advance(8, "score 0.31")`.
    """
    if not sys.stderr.isatty():
        yield _sparse(title, total=total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda amount, note: progress.update(task, advance=amount, note=note)


def _sparse(title: str, *, total: int) -> Advance:
    done, printed, start = 0, 0, time.monotonic()

    def advance(amount: int, note: str) -> None:
        nonlocal done, printed
        done += amount
        tenth = done * SPARSE_LINES // max(total, 1)
        if tenth > printed:
            printed = tenth
            seconds = time.monotonic() - start
            say(f"{title} {done}/{total} | {seconds:.1f}s{' | ' + note if note else ''}")

    return advance
