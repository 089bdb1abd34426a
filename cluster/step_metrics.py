"""A step's rollout numbers, from the summaries of its groups. Keys are `room/thing/stat`."""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from actors.trajectory import GroupSummary
from simulators.gauges import gauges
from simulators.user import RULES, Failure

FAILURES = frozenset(failure.value for failure in Failure)


def rollout_metrics(summaries: Sequence[GroupSummary], *, duration_s: float) -> dict[str, float]:
    """Of all groups settled since the step before, dropped ones among them: what the policy can do, and not
    what was worth training. Failed trajectories are left out of every mean, never counted as a score.

    `duration_s` is the seconds from the step before to this one.
    """
    num_turns = [
        turns
        for summary in summaries
        for turns, reason in zip(summary.num_turns, summary.stop_reasons, strict=True)
        if not reason.failed
    ]
    num_tokens = sum(summary.num_policy_tokens for summary in summaries)
    env_s, policy_s = (sum(getattr(summary, name) for summary in summaries) for name in ("env_s", "policy_s"))
    return {
        "rollout/reward/mean": _mean(summaries),
        **{
            f"rollout/reward/{gym}": _mean([summary for summary in summaries if summary.task_key.gym == gym])
            for gym in sorted({summary.task_key.gym for summary in summaries})
        },
        "rollout/turns/mean": float(np.mean(num_turns)),
        "rollout/policy_tokens": float(num_tokens),
        "rollout/tokens_per_s": num_tokens / duration_s,
        "rollout/group_duration_s/max": max(summary.duration_s for summary in summaries),
        "rollout/user_retries": float(sum(summary.user_retries for summary in summaries)),
        "rollout/wait_for_engine/share": policy_s / max(policy_s + env_s, 1e-9),
        **gauges((summary.simulator or RULES, summary.gauges) for summary in summaries),
        **_failures(summaries),
    }


def _failures(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Trajectories that a user failed, by simulator and reason, e.g. `users/qwen/failed/role_flip`."""
    counts = Counter(
        f"users/{summary.simulator or RULES}/failed/{reason}"
        for summary in summaries
        for reason in summary.stop_reasons
        if reason.value in FAILURES
    )
    return {key: float(number) for key, number in sorted(counts.items())}


def age_metrics(summaries: Sequence[GroupSummary], *, policy_version: int) -> dict[str, float]:
    """Of the groups that one step trains; `policy_version` is the learners' before the step."""
    ages = [policy_version - summary.oldest_version for summary in summaries]
    spans = [summary.newest_version - summary.oldest_version for summary in summaries]
    return {
        "buffer/age/mean": float(np.mean(ages)),
        "buffer/age/max": float(max(ages)),
        "buffer/span/max": float(max(spans)),
    }


def _mean(summaries: Sequence[GroupSummary]) -> float:
    """Mean score of the trajectories that did not fail."""
    return float(np.nanmean([score for summary in summaries for score in summary.scores]))


class Laps:
    """Seconds of each stage of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._metrics: dict[str, float] = {}

    def end(self, stage: str) -> None:
        """The stage that began with the last `end` is over."""
        now = time.perf_counter()
        self._metrics[f"time/{stage}_s"] = now - self._last
        self._last = now

    def metrics(self) -> dict[str, float]:
        return {**self._metrics, "time/step_s": self._last - self._start}
