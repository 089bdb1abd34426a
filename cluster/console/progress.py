"""Progress output of a running command: lines, stages with remaining time, one line a step. Emits events; the
screen decides how they look. stderr only, since stdout is for results."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from cluster.console.eta import EtaEstimator, RunClock, short_time
from cluster.console.event_bus import AUDIENCE
from cluster.console.events import LineKind, LogLine, StageProgress, StepFinished, WaitReason

STAGES = ("wait", "update", "sync", "weights", "report")
"""What the driver does in a step; `time/<stage>_s` in its metrics."""
SETUP = "set-up"
SETUP_S = {
    "Ray": 6.0,
    "the policy": 4.0,
    "users, buffer": 10.0,
    "learners, rollout actors": 20.0,
    "engines": 2.0,
    "users": 10.0,
    "rollout actors": 10.0,
    "weights": 2.0,
}
"""Parts of a set-up, with what they take on two cores: the first guess, until a run has measured its own."""
Advance = Callable[[int, str], None]
"""(how much more is done, a note such as `loss 1.23`)."""


class _OpenRun:
    """The run that this process drives, where it drives one."""

    clock: RunClock | None = None
    setup_s: Mapping[str, float] = {}
    setting_up: Callable[[str], None] | None = None


_RUN = _OpenRun()


@contextmanager
def join_run(clock: RunClock, *, setup_s: Mapping[str, float]) -> Iterator[None]:
    """While it lasts, steps are told with the time that is left by `clock`, and the set-up is expected to
    take `setup_s`, by part."""
    _RUN.clock, _RUN.setup_s = clock, setup_s
    try:
        yield
    finally:
        _RUN.clock, _RUN.setup_s = None, {}


def quiet_libraries() -> None:
    """Keeps what Ray logs for its own developers off a person's screen; errors still show."""
    for noisy in ("ray", "ray.rllib", "ray.serve", "ray.tune", "ray._private"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def say(line: str, *, kind: LineKind = "line") -> None:
    """Tells one line for people."""
    AUDIENCE.tell(LogLine(text=line, kind=kind))


def warn(line: str) -> None:
    """Tells of trouble: what went wrong, and what is done about it. `userrl status` shows the last ones."""
    say(line, kind="trouble")


def waits_for(text: str) -> None:
    """Reports what the current step waits for; empty once it no longer waits."""
    AUDIENCE.tell(WaitReason(text=text))


def tell_step(step: int, *, num_steps: int, metrics: Mapping[str, float]) -> None:
    """Tells that a step is over."""
    left_s = _RUN.clock.step_over(step, at=time.time()) if _RUN.clock else None
    line = step_line(step, num_steps=num_steps, metrics=metrics, left_s=left_s)
    AUDIENCE.tell(StepFinished(step=step, num_steps=num_steps, text=line, left_s=left_s, metrics=metrics))


def step_line(step: int, *, num_steps: int, metrics: Mapping[str, float], left_s: float | None = None) -> str:
    """One step for people.

    Example: `step 12/60 | 4.2s | 3m 20s left | reward 0.41 | turns 5.2 | lag 0 | 8.1k tok/s | idle learner 6%
    engine 2% | dropped flat 16 | ledger 640 = 512 + 112 + 16` (issued = trained + dropped + in flight, in
    trajectories).
    """
    dropped = {
        k.removeprefix("ledger/dropped/"): v for k, v in metrics.items() if k.startswith("ledger/dropped/")
    }
    issued, trained, in_flight = (metrics[f"ledger/{name}"] for name in ("issued", "trained", "in_flight"))
    parts = [
        f"step {step}/{num_steps}",
        f"{metrics['time/step_s']:.1f}s",
        *([] if left_s is None else [f"{short_time(left_s)} left"]),
        f"reward {metrics['rollout/reward/mean']:.2f}",
        f"turns {metrics['rollout/turns/mean']:.1f}",
        f"lag {metrics['buffer/age/max']:g}",
        f"{metrics['rollout/tokens_per_s'] / 1000:.1f}k tok/s",
        f"idle learner {_share(metrics['learner/idle/share'])} engine {_share(metrics['engine/idle/share'])}",
        "dropped " + (" ".join(f"{reason} {count:.0f}" for reason, count in dropped.items() if count) or "0"),
        f"ledger {issued:.0f} = {trained:.0f} + {sum(dropped.values()):.0f} + {in_flight:.0f}",
    ]
    return " | ".join(parts)


def times_line(steps: Sequence[Mapping[str, float | None]]) -> str:
    """Where the time of these steps went, for people; of each share the mean, long steps counting more. A
    step has no share of an engine that was replaced in it.

    Example: `60 steps of 4.2s: wait 12% update 81% sync 0% weights 3% report 4% | idle learner 16% engine 2%`
    """
    total_s = sum(step["time/step_s"] or 0.0 for step in steps)
    stages = " ".join(
        f"{stage} {_share(sum(step[f'time/{stage}_s'] or 0.0 for step in steps) / total_s)}"
        for stage in STAGES
    )
    idlers = " ".join(f"{who} {_share(_idle(steps, who))}" for who in ("learner", "engine"))
    return f"{len(steps)} steps of {total_s / len(steps):.1f}s: {stages} | idle {idlers}"


def _idle(steps: Sequence[Mapping[str, float | None]], who: str) -> float:
    """NaN where no step says it."""
    known = [
        (share, step["time/step_s"] or 0.0)
        for step in steps
        if (share := step[f"{who}/idle/share"]) is not None and math.isfinite(share)
    ]
    seconds = sum(step_s for _, step_s in known)
    return sum(share * step_s for share, step_s in known) / seconds if seconds else math.nan


def _share(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "-"


@contextmanager
def stage_progress(title: str, *, total: int) -> Iterator[Advance]:
    """Tells how far a stage is, and how long it still takes.

    Example: `with stage_progress("evaluate sft", total=600) as advance: advance(8, "score 0.31")`.
    """
    pace, newest = EtaEstimator(total=total, at=time.time()), ""

    def tell(*, is_over: bool = False) -> None:
        at = time.time()
        elapsed_s, left_s = pace.elapsed_s(at), pace.left_s(at)
        AUDIENCE.tell(
            StageProgress(
                stage=title,
                done=round(pace.done),
                total=total,
                note=newest,
                elapsed_s=elapsed_s,
                left_s=left_s,
                is_over=is_over,
                at=at,
            )
        )

    def advance(amount: int, note: str) -> None:
        nonlocal newest
        pace.advance(amount, at=time.time())
        newest = note
        tell()

    tell()
    try:
        yield advance
    finally:
        tell(is_over=True)
    if _RUN.clock:
        _RUN.clock.stage_over(title, elapsed_s=pace.elapsed_s(time.time()))


@contextmanager
def set_up(parts: Sequence[str]) -> Iterator[None]:
    """Reports progress of the set-up, whose parts are named in `SETUP_S`; `setting_up` starts each part."""
    expected_s = {**SETUP_S, **_RUN.setup_s}
    began_at, begun = time.time(), list[str]()

    def tell(*, num_done: int, is_over: bool = False) -> None:
        left_s = sum(expected_s[part] for part in parts[num_done:])
        AUDIENCE.tell(
            StageProgress(
                stage=SETUP,
                done=num_done,
                total=len(parts),
                note=begun[-1] if begun and not is_over else "",
                elapsed_s=max(0.0, time.time() - began_at),
                left_s=left_s,
                is_over=is_over,
            )
        )

    def begin(part: str) -> None:
        if part in parts and part not in begun:
            begun.append(part)
            tell(num_done=len(begun) - 1)

    before, _RUN.setting_up = _RUN.setting_up, begin
    try:
        yield
    except BaseException:
        tell(num_done=max(0, len(begun) - 1), is_over=True)
        raise
    finally:
        _RUN.setting_up = before
    tell(num_done=len(parts), is_over=True)


def setting_up(part: str) -> None:
    """Starts a part of the set-up. No effect outside of `set_up`."""
    if _RUN.setting_up:
        _RUN.setting_up(part)
