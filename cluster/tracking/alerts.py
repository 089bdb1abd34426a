"""Alert rules on a run's metrics, shown on the console and in W&B. Pure: metrics of a step in, alert texts
out; thresholds are constants here unless the recipe sets them.

docs/wandb.md explains each alert and its cure.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from cluster.console.events import describe_error
from simulators.config import GaugeLimits
from simulators.users.quality_metrics import alarms

WINDOW_STEPS = 5
"""Means are taken over this many steps."""
QUIET_STEPS = 25
"""An alert of one kind comes at most once in this many steps, as long as its cause lasts or comes again."""
ENTROPY_SHARE = 0.1
"""Of the entropy of the first window: below it the policy hardly tries anything any more."""
REWARD_SHARE = 0.5
"""Of the best window's reward: below it the policy has forgotten what it could."""
LEAST_REWARD = 0.1
"""Best windows below this are noise, and cannot collapse."""
FLAT_SHARE = 0.8
"""Of the trajectories settled in a window: so many dropped as flat teach nothing and cost as much."""
GAP_SHARE = 0.5
"""Of `learner.max_logprob_gap`, at which the run stops."""
WAIT_FACTOR, LEAST_WAIT_S = 10.0, 60.0
"""A step's wait for groups is stuck if it is so many times the median one, and at least so long."""
OVERDUE_FACTOR, LEAST_OVERDUE_S = 10.0, 600.0
"""The same, of usual steps, while a step still waits: the first may wait for engines to become warm."""
MOST_STEPS_KEPT = 200
"""Of which the medians are taken."""

Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One thing to look at."""

    kind: str
    """What is limited in number: entropy, reward, flat, stuck, gap, users or stopped."""
    title: str
    """Under 64 characters, as W&B wants it."""
    text: str
    """Rule, value, cure."""
    level: Level = "WARN"


class RunAlerts:
    """Watches the steps of one run."""

    def __init__(self, *, limits: GaugeLimits, max_logprob_gap: float):
        self._limits = limits
        self._max_gap = max_logprob_gap
        self._first_entropies: list[float] = []
        self._windows: dict[str, deque[float]] = {
            key: deque(maxlen=WINDOW_STEPS) for key in ("learner/entropy", "rollout/reward/mean")
        }
        self._best_reward = -math.inf
        self._settled: deque[tuple[float, float]] = deque(maxlen=WINDOW_STEPS + 1)
        """(flat, all settled) so far, after each of the last steps."""
        self._waits: deque[float] = deque(maxlen=MOST_STEPS_KEPT)
        self._step_seconds: deque[float] = deque(maxlen=MOST_STEPS_KEPT)
        self._told_at: dict[str, int] = {}
        """The step of the last alert of a kind."""
        self._last_step = 0
        self._waits_since: float | None = None
        """By the caller's clock; None while no step waits."""

    def look(self, step: int, *, metrics: Mapping[str, float | None]) -> list[Alert]:
        """What one more step gives rise to. Numbers are named as in metrics.jsonl; what is None, NaN or
        missing is not looked at."""
        known = {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}
        self._last_step = step
        found = [
            *self._entropy(known),
            *self._reward(known),
            *self._flat(known),
            *self._wait(known),
            *self._gap(known),
            *self._users(known),
        ]
        return [alert for alert in found if self._is_due(alert, step=step)]

    def wait(self, text: str, *, at: float) -> list[Alert]:
        """What a step gives rise to that waits at `at`, in seconds of any clock, for what `text` says; empty:
        it goes on."""
        if not text:
            self._waits_since = None
            return []
        if self._waits_since is None:
            self._waits_since = at
        waited_s = at - self._waits_since
        usual_s = median(self._step_seconds) if self._step_seconds else 0.0
        if waited_s < max(LEAST_OVERDUE_S, OVERDUE_FACTOR * usual_s):
            return []
        usual = f", where the usual one takes {usual_s:.0f} s" if usual_s else ""
        alert = _stuck(
            f"{text.partition(':')[0]}, for {waited_s:.0f} s by now{usual}: the console says which orders "
            "are waited for and which actors hold them"
        )
        return [alert] if self._is_due(alert, step=self._last_step) else []

    def _is_due(self, alert: Alert, *, step: int) -> bool:
        if step - self._told_at.get(alert.kind, -QUIET_STEPS) < QUIET_STEPS:
            return False
        self._told_at[alert.kind] = step
        return True

    def _mean(self, key: str, known: Mapping[str, float]) -> float | None:
        """Of the last window, where this step is in it and it is full."""
        window = self._windows[key]
        if key not in known:
            return None
        window.append(known[key])
        return _mean_of(window) if len(window) == WINDOW_STEPS else None

    def _entropy(self, known: Mapping[str, float]) -> Iterator[Alert]:
        mean = self._mean("learner/entropy", known)
        if mean is not None and len(self._first_entropies) < WINDOW_STEPS:
            self._first_entropies = list(self._windows["learner/entropy"])
        if mean is not None and mean < ENTROPY_SHARE * _mean_of(self._first_entropies):
            yield Alert(
                kind="entropy",
                title="entropy collapse",
                text=f"learner/entropy={mean:.4f}, mean of {WINDOW_STEPS} steps: it is under "
                f"{ENTROPY_SHARE:.0%} of {_mean_of(self._first_entropies):.4f}, where GRPO began, and a "
                "policy that tries nothing new learns nothing: set learner.entropy.target or "
                "learner.entropy.coefficient, lower learner.lr, or go back to the best checkpoint",
            )

    def _reward(self, known: Mapping[str, float]) -> Iterator[Alert]:
        mean = self._mean("rollout/reward/mean", known)
        if mean is None:
            return
        self._best_reward = max(self._best_reward, mean)
        if self._best_reward >= LEAST_REWARD and mean < REWARD_SHARE * self._best_reward:
            yield Alert(
                kind="reward",
                title="reward collapse",
                text=f"rollout/reward/mean={mean:.3f}, mean of {WINDOW_STEPS} steps: it is under "
                f"{REWARD_SHARE:.0%} of the best, {self._best_reward:.3f}: read the dialogues of these "
                "steps, look at train/learner/grad_norm and kl, and go back to the best checkpoint with a "
                "lower learner.lr",
            )

    def _flat(self, known: Mapping[str, float]) -> Iterator[Alert]:
        dropped = {key: value for key, value in known.items() if key.startswith("ledger/dropped/")}
        if "ledger/trained" not in known:
            return
        flat, settled = dropped.get("ledger/dropped/flat", 0.0), known["ledger/trained"]
        self._settled.append((flat, settled + sum(dropped.values())))
        (flat_before, settled_before), num_settled = self._settled[0], self._settled[-1][1]
        if len(self._settled) <= WINDOW_STEPS or num_settled <= settled_before:
            return
        share = (flat - flat_before) / (num_settled - settled_before)
        if share > FLAT_SHARE:
            yield Alert(
                kind="flat",
                title="most groups are flat",
                text=f"ledger/dropped/flat: {share:.0%} of what was settled in {WINDOW_STEPS} steps, above "
                f"{FLAT_SHARE:.0%}: all dialogues of these groups earn the same, so nothing is learned from "
                "them: take harder or easier tasks (gyms.difficulty, gyms.weights), or a larger "
                "rollout.group_size",
            )

    def _wait(self, known: Mapping[str, float]) -> Iterator[Alert]:
        wait_s = known.get("time/wait_s")
        if wait_s is None:
            return
        if "time/step_s" in known:
            self._step_seconds.append(known["time/step_s"])
        usual_s = median(self._waits) if len(self._waits) >= WINDOW_STEPS else math.inf
        self._waits.append(wait_s)
        if wait_s >= LEAST_WAIT_S and wait_s > WAIT_FACTOR * usual_s:
            reissued = known.get("buffer/reissued", 0.0)
            yield _stuck(
                f"time/wait_s={wait_s:.0f}: over {WAIT_FACTOR:g} times the usual {usual_s:.1f} s, with "
                f"{reissued:.0f} groups reassigned so far: the console names their actors; look at "
                "users/*/failed, rollout/engine/num_serving and rollout.dialogue_timeout_s"
            )

    def _gap(self, known: Mapping[str, float]) -> Iterator[Alert]:
        gap = known.get("learner/logprob_gap/mean", 0.0)
        if gap > GAP_SHARE * self._max_gap:
            yield Alert(
                kind="gap",
                title="engine and learner drift apart",
                text=f"learner/logprob_gap/mean={gap:.5f}: over {GAP_SHARE:.0%} of "
                f"learner.max_logprob_gap={self._max_gap:g}, at which the run stops: give learner.dtype and "
                "engine.dtype alike",
            )

    def _users(self, known: Mapping[str, float]) -> Iterator[Alert]:
        lines = alarms(known, self._limits)
        if lines:
            yield Alert(
                kind="users",
                title="simulated users",
                text=f"{'; '.join(lines)}: read their dialogues (docs/users.md); the limits are the "
                "recipe's simulator.alarms",
            )


def stopped(error: BaseException, *, step: int) -> Alert:
    """The run ends by an error."""
    return Alert(
        kind="stopped",
        title="the run has stopped",
        text=f"after step {step}: {describe_error(error)}",
        level="ERROR",
    )


def _stuck(text: str) -> Alert:
    return Alert(kind="stuck", title="rollouts are stuck", text=text)


def _mean_of(values: Sequence[float] | deque[float]) -> float:
    return math.fsum(values) / len(values)
