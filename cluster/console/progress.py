"""Progress of a running command: stages with remaining time, one line a step. Logs records of `events.py`,
which the handlers of `log.py` show."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from cluster.console.eta import EtaEstimator, RunClock, short_time
from cluster.console.events import StageProgress, StepFinished, WaitReason
from cluster.console.log import BARS_ONLY, LOG

STAGES = ("wait", "update", "sync", "weights", "report")
"""Stages of a driver's step; `time/<stage>_s` in its metrics."""
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
"""Parts of a set-up, with their seconds on two cores: the first estimate, until a run has measured its
own."""
LINES_PER_STAGE = 10
"""Plain lines of a stage, at most."""
STAGE_EVERY_S = 1.0
"""Minimum seconds between two records of one stage without a plain line, except for those that only bars
show."""
Advance = Callable[[int, str], None]
"""(number of parts finished since the last call, a note such as `loss 1.23`)."""


class _CurrentRun:
    """State of the run that this process drives, if it drives one."""

    clock: RunClock | None = None
    setup_s: Mapping[str, float] = {}
    begin_setup_part: Callable[[str], None] | None = None
    is_waiting: bool = False


_RUN = _CurrentRun()


@contextmanager
def estimated_by(clock: RunClock, *, setup_s: Mapping[str, float]) -> Iterator[None]:
    """Inside the block, steps show the remaining time by `clock`, and each part of a set-up is expected to
    take its `setup_s`."""
    _RUN.clock, _RUN.setup_s = clock, setup_s
    try:
        yield
    finally:
        _RUN.clock, _RUN.setup_s = None, {}


def quiet_libraries() -> None:
    """Shows only errors of what Ray logs for its own developers."""
    for noisy in ("ray", "ray.rllib", "ray.serve", "ray.tune", "ray._private"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def report_wait(text: str) -> None:
    """Logs what the current step waits for; empty once it no longer waits."""
    if text or _RUN.is_waiting:
        LOG.debug(WaitReason(text=text))
    _RUN.is_waiting = bool(text)


def report_step(step: int, *, num_steps: int, metrics: Mapping[str, float]) -> None:
    """Logs a finished step."""
    left_s = _RUN.clock.finish_step(step, at=time.time()) if _RUN.clock else None
    line = step_line(step, num_steps=num_steps, metrics=metrics, left_s=left_s)
    LOG.info(StepFinished(step=step, num_steps=num_steps, left_s=left_s, text=line, metrics=metrics))


def step_line(step: int, *, num_steps: int, metrics: Mapping[str, float], left_s: float | None = None) -> str:
    """The line of one step.

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
    """Time of these steps by stage; idle shares are means weighted by the steps' seconds. A step in which an
    engine was replaced has no share of engines.

    Example: `60 steps of 4.2s: wait 12% update 81% sync 0% weights 3% report 4% | idle learner 16% engine 2%`
    """
    total_s = sum(step["time/step_s"] or 0.0 for step in steps)
    stages = " ".join(
        f"{stage} {_share(sum(step[f'time/{stage}_s'] or 0.0 for step in steps) / total_s)}"
        for stage in STAGES
    )
    idle = " ".join(f"{room} {_share(_idle(steps, room))}" for room in ("learner", "engine"))
    return f"{len(steps)} steps of {total_s / len(steps):.1f}s: {stages} | idle {idle}"


def _idle(steps: Sequence[Mapping[str, float | None]], room: str) -> float:
    """NaN if no step has the share."""
    known = [
        (share, step["time/step_s"] or 0.0)
        for step in steps
        if (share := step[f"{room}/idle/share"]) is not None and math.isfinite(share)
    ]
    seconds = sum(step_s for _, step_s in known)
    return sum(share * step_s for share, step_s in known) / seconds if seconds else math.nan


def _share(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "-"


class _Stage:
    """One stage's records: at INFO when another tenth of it is done; at DEBUG at its end and if `every_s` has
    passed since the last one; else for bars only."""

    def __init__(self, title: str, *, total: int, every_s: float = STAGE_EVERY_S):
        self._title, self._total, self._every_s = title, total, every_s
        self._began_at, self._logged_at = time.time(), -math.inf
        self._num_lines = 0

    def log(self, *, done: int, left_s: float | None, note: str = "", is_over: bool = False) -> None:
        now, num_lines, level = time.time(), done * LINES_PER_STAGE // max(self._total, 1), BARS_ONLY
        if num_lines > self._num_lines:
            level = logging.INFO
        elif is_over or now - self._logged_at >= self._every_s:
            level = logging.DEBUG
        if level != BARS_ONLY:
            self._num_lines, self._logged_at = max(num_lines, self._num_lines), now
        LOG.log(
            level,
            StageProgress(
                stage=self._title,
                done=done,
                total=self._total,
                note=note,
                elapsed_s=max(0.0, now - self._began_at),
                left_s=left_s,
                is_over=is_over,
            ),
        )


@contextmanager
def stage_progress(title: str, *, total: int) -> Iterator[Advance]:
    """Logs the progress and the remaining time of a stage.

    Example: `with stage_progress("evaluate sft", total=600) as advance: advance(8, "score 0.31")`.
    """
    stage, estimator, note = _Stage(title, total=total), EtaEstimator(total=total, at=time.time()), ""

    def log(*, is_over: bool = False) -> None:
        left_s = estimator.left_s(time.time())
        stage.log(done=round(estimator.done), left_s=left_s, note=note, is_over=is_over)

    def advance(amount: int, newest: str) -> None:
        nonlocal note
        note = newest
        estimator.advance(amount, at=time.time())
        log()

    log()
    try:
        yield advance
    finally:
        log(is_over=True)
    if _RUN.clock:
        _RUN.clock.finish_stage(title, elapsed_s=estimator.elapsed_s(time.time()))


@contextmanager
def setup_progress(parts: Sequence[str]) -> Iterator[None]:
    """Logs the progress of a set-up, whose parts are named in `SETUP_S`; `begin_setup_part` starts each."""
    expected_s = {**SETUP_S, **_RUN.setup_s}
    stage = _Stage(SETUP, total=len(parts), every_s=0)
    begun: list[str] = []

    def log(num_done: int, *, note: str = "", is_over: bool = False) -> None:
        left_s = sum(expected_s[part] for part in parts[num_done:])
        stage.log(done=num_done, left_s=left_s, note=note, is_over=is_over)

    def begin(part: str) -> None:
        if part in parts and part not in begun:
            begun.append(part)
            log(len(begun) - 1, note=part)

    before, _RUN.begin_setup_part = _RUN.begin_setup_part, begin
    try:
        yield
    except BaseException:
        log(max(0, len(begun) - 1), is_over=True)
        raise
    finally:
        _RUN.begin_setup_part = before
    log(len(parts), is_over=True)


def begin_setup_part(part: str) -> None:
    """Starts a part of the set-up. No effect outside of `setup_progress`."""
    if _RUN.begin_setup_part:
        _RUN.begin_setup_part(part)
