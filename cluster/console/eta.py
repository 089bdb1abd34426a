"""Estimate of the remaining time from recent speed. Pure: timestamps (seconds of any one clock) are passed
in."""

from collections import deque

SAMPLE_SHARE = 0.01
"""Two kept samples are at least this share of the elapsed time apart: their number is bounded, however many
parts the work has."""
LAST_EVALUATION = ("evaluate untrained", "evaluate sft")
"""Stages with as many dialogues as the evaluation at the end of a run."""


class EtaEstimator:
    """Remaining time of work that is done in parts."""

    def __init__(self, *, total: float, at: float, done: float = 0.0):
        self.total = total
        self.done = done
        self._began_at = at
        self._samples: deque[tuple[float, float]] = deque([(at, done)])
        """(time, work done by then), oldest first; the first is older than the newer half."""

    def advance(self, amount: float, *, at: float) -> None:
        """Adds finished work."""
        self.done += amount
        if at - self._samples[-1][0] >= SAMPLE_SHARE * self.elapsed_s(at):
            self._samples.append((at, self.done))
        while len(self._samples) > 1 and self._samples[1][0] <= self._half(at):
            self._samples.popleft()

    def elapsed_s(self, at: float) -> float:
        return max(0.0, at - self._began_at)

    def left_s(self, at: float) -> float | None:
        """Seconds until all is done, at the speed of the newer half of the elapsed time; None if nothing was
        done in it.

        Example: 2 of 10 parts after 20 s, each in 10 s, leave 80 s.
        """
        if self.done >= self.total:
            return 0.0
        then, before = self._samples[0]
        for moment, done in self._samples:
            if moment > self._half(at):
                break
            then, before = moment, done
        gained, seconds = self.done - before, at - then
        return (self.total - self.done) * seconds / gained if gained > 0 and seconds > 0 else None

    def _half(self, at: float) -> float:
        return at - self.elapsed_s(at) / 2


class RunClock:
    """Remaining time of a run: its steps, and the evaluation after them."""

    def __init__(self, *, num_steps: int):
        self._num_steps = num_steps
        self._steps: EtaEstimator | None = None
        self._evaluation_s = 0.0

    def finish_stage(self, name: str, *, elapsed_s: float) -> None:
        """Notes how long a stage took."""
        if name in LAST_EVALUATION:
            self._evaluation_s = elapsed_s

    def finish_step(self, step: int, *, at: float) -> float | None:
        """Seconds until the end of the run; None after a process's first step, whose start was not measured.
        A repeated step restarts the estimate."""
        if self._steps is None or step <= self._steps.done:
            self._steps = EtaEstimator(total=self._num_steps, at=at, done=step)
        else:
            self._steps.advance(step - self._steps.done, at=at)
        left_s = self._steps.left_s(at)
        return None if left_s is None else left_s + self._evaluation_s


def short_time(seconds: float) -> str:
    """A duration in at most two units.

    Example: `short_time(200)` is `"3m 20s"`, `short_time(7500)` is `"2h 05m"`.
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
