"""Alert rules on a run's metrics, shown on the console and in W&B. Pure: metrics of a step in, alerts out;
thresholds are constants here unless the recipe sets them.

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
"""Number of steps of a mean."""
QUIET_STEPS = 25
"""Minimum number of steps between two alerts of one kind."""
ENTROPY_SHARE = 0.1
"""Share of the entropy of the first window; below it the policy hardly explores."""
REWARD_SHARE = 0.5
"""Share of the best window's reward; below it the policy has collapsed."""
LEAST_REWARD = 0.1
"""A best window below this is noise, and cannot collapse."""
FLAT_SHARE = 0.8
"""Share of a window's trajectories that are dropped as flat: they cost rollouts and give no gradient."""
GAP_SHARE = 0.5
"""Share of `learner.max_logprob_gap`, at which the run stops."""
WAIT_FACTOR, LEAST_WAIT_S = 10.0, 60.0
"""A step's wait for groups is stuck if it exceeds this multiple of the median wait, and this minimum."""
OVERDUE_FACTOR, LEAST_OVERDUE_S = 10.0, 600.0
"""The same for the current wait, as a multiple of the median step: the first step may wait for engines to
warm up."""
MOST_STEPS_KEPT = 200
"""Number of steps of the medians."""

Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One alert."""

    kind: str
    """entropy, reward, flat, stuck, gap, users or stopped; each kind is rate-limited."""
    title: str
    """Under 64 characters, as W&B requires."""
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
        self._resolved: deque[tuple[float, float]] = deque(maxlen=WINDOW_STEPS + 1)
        """Cumulative (flat, resolved) trajectories after each of the last steps."""
        self._waits: deque[float] = deque(maxlen=MOST_STEPS_KEPT)
        self._step_seconds: deque[float] = deque(maxlen=MOST_STEPS_KEPT)
        self._alerted_at: dict[str, int] = {}
        """Step of the last alert of each kind."""
        self._last_step = 0
        self._waiting_since: float | None = None
        """In the caller's clock; None if no step waits."""

    def check_step(self, step: int, *, metrics: Mapping[str, float | None]) -> list[Alert]:
        """Alerts of one more step. Keys are those of metrics.jsonl; values that are None, NaN or missing are
        ignored."""
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

    def check_wait(self, text: str, *, at: float) -> list[Alert]:
        """Alerts of a step that waits for `text` at the time `at`, in seconds of any clock; an empty text
        means that it no longer waits."""
        if not text:
            self._waiting_since = None
            return []
        if self._waiting_since is None:
            self._waiting_since = at
        waited_s = at - self._waiting_since
        usual_s = median(self._step_seconds) if self._step_seconds else 0.0
        if waited_s < max(LEAST_OVERDUE_S, OVERDUE_FACTOR * usual_s):
            return []
        usual = f", while a usual step takes {usual_s:.0f} s" if usual_s else ""
        alert = _stuck(
            f"{text.partition(':')[0]}, for {waited_s:.0f} s by now{usual}: the console shows which orders "
            "are outstanding and which actors hold them"
        )
        return [alert] if self._is_due(alert, step=self._last_step) else []

    def _is_due(self, alert: Alert, *, step: int) -> bool:
        if step - self._alerted_at.get(alert.kind, -QUIET_STEPS) < QUIET_STEPS:
            return False
        self._alerted_at[alert.kind] = step
        return True

    def _mean(self, key: str, known: Mapping[str, float]) -> float | None:
        """Mean of the last window; None if it is not full or this step lacks the key."""
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
                text=f"learner/entropy={mean:.4f}, mean of {WINDOW_STEPS} steps: below "
                f"{ENTROPY_SHARE:.0%} of {_mean_of(self._first_entropies):.4f} at the start of GRPO, and a "
                "policy that does not explore does not learn: set learner.entropy.target or "
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
                text=f"rollout/reward/mean={mean:.3f}, mean of {WINDOW_STEPS} steps: below "
                f"{REWARD_SHARE:.0%} of the best, {self._best_reward:.3f}: read the dialogues of these "
                "steps, look at train/learner/grad_norm and kl, and go back to the best checkpoint with a "
                "lower learner.lr",
            )

    def _flat(self, known: Mapping[str, float]) -> Iterator[Alert]:
        dropped = {key: value for key, value in known.items() if key.startswith("ledger/dropped/")}
        if "ledger/trained" not in known:
            return
        flat, trained = dropped.get("ledger/dropped/flat", 0.0), known["ledger/trained"]
        self._resolved.append((flat, trained + sum(dropped.values())))
        (flat_before, resolved_before), num_resolved = self._resolved[0], self._resolved[-1][1]
        if len(self._resolved) <= WINDOW_STEPS or num_resolved <= resolved_before:
            return
        share = (flat - flat_before) / (num_resolved - resolved_before)
        if share > FLAT_SHARE:
            yield Alert(
                kind="flat",
                title="most groups are flat",
                text=f"ledger/dropped/flat: {share:.0%} of the trajectories of {WINDOW_STEPS} steps, above "
                f"{FLAT_SHARE:.0%}: all dialogues of a flat group have equal rewards, which gives no "
                "gradient: take harder or easier tasks (gyms.difficulty, gyms.weights), or a larger "
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
                f"time/wait_s={wait_s:.0f}: more than {WAIT_FACTOR:g} times the usual {usual_s:.1f} s, with "
                f"{reissued:.0f} groups reassigned so far: the console names their actors; look at "
                "users/*/failed, rollout/engine/num_serving and rollout.dialogue_timeout_s"
            )

    def _gap(self, known: Mapping[str, float]) -> Iterator[Alert]:
        gap = known.get("learner/logprob_gap/mean", 0.0)
        if gap > GAP_SHARE * self._max_gap:
            yield Alert(
                kind="gap",
                title="engine and learner drift apart",
                text=f"learner/logprob_gap/mean={gap:.5f}: above {GAP_SHARE:.0%} of "
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
    """Alert of a run that ends with an error."""
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
