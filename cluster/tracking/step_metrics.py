"""Rollout and timing metrics of a step, computed from the summaries of its groups. Keys are
`room/thing/stat`."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from actors.engines.engine_clock import EngineUsage
from actors.trajectory import GroupSummary
from actors.trajectory_table import TURN_STAGES
from simulators.user import RULES, Failure
from simulators.users.quality_metrics import gauge_shares

FAILURES = frozenset(failure.value for failure in Failure)


def rollout_metrics(summaries: Sequence[GroupSummary], *, duration_s: float) -> dict[str, float]:
    """Metrics of all groups resolved since the previous step, dropped ones included: they show what the
    policy can do, not what was worth training on. Failed trajectories are left out of every mean.

    `duration_s` is the seconds since the previous step.
    """
    num_turns = [
        turns
        for summary in summaries
        for turns, reason in zip(summary.num_turns, summary.stop_reasons, strict=True)
        if not reason.failed
    ]
    num_tokens = sum(summary.num_policy_tokens for summary in summaries)
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
        **_turn_times(summaries),
        **gauge_shares((summary.simulator or RULES, summary.gauges) for summary in summaries),
        **_failures(summaries),
        **_concurrencies(summaries),
    }


def _turn_times(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Share of each stage in all turns' seconds, e.g. `rollout/time/user/share`, and mean seconds of a turn
    by gym."""
    seconds = {stage: sum(getattr(summary, f"{stage}_s") for summary in summaries) for stage in TURN_STAGES}
    total = max(sum(seconds.values()), 1e-9)
    by_gym: dict[str, list[float]] = {}
    for summary in summaries:
        of_gym = by_gym.setdefault(summary.task_key.gym, [0.0, 0.0])
        of_gym[0] += sum(getattr(summary, f"{stage}_s") for stage in TURN_STAGES)
        of_gym[1] += sum(summary.num_turns)
    return {
        **{f"rollout/time/{stage}/share": value / total for stage, value in seconds.items()},
        **{
            f"rollout/turn_s/{gym}": spent / max(turns, 1.0) for gym, (spent, turns) in sorted(by_gym.items())
        },
    }


def _failures(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Number of trajectories that a user failed, by simulator and reason, e.g.
    `users/qwen/failed/role_flip`."""
    counts = Counter(
        f"users/{summary.simulator or RULES}/failed/{reason}"
        for summary in summaries
        for reason in summary.stop_reasons
        if reason.value in FAILURES
    )
    return {key: float(number) for key, number in sorted(counts.items())}


def _concurrencies(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Mean number of concurrent calls of one rollout actor to a simulator, e.g.
    `users/qwen/concurrency/mean`; only for simulators with a limit."""
    limits: dict[str, list[float]] = defaultdict(list)
    for summary in summaries:
        if summary.user_concurrency:
            limits[summary.simulator].append(summary.user_concurrency)
    return {f"users/{name}/concurrency/mean": float(np.mean(of)) for name, of in sorted(limits.items())}


def age_metrics(summaries: Sequence[GroupSummary], *, policy_version: int) -> dict[str, float]:
    """Ages and spans of the groups of one step; `policy_version` is the learners' before the step. The age of
    a group is that of its oldest trainable token at the moment of use; the span of a trajectory is its newest
    minus its oldest version."""
    ages = [policy_version - summary.oldest_version for summary in summaries]
    spans = [span for summary in summaries for span in summary.version_spans]
    return {
        "buffer/age/mean": float(np.mean(ages)),
        "buffer/age/max": float(max(ages)),
        "buffer/span/mean": float(np.mean(spans)),
        "buffer/span/max": float(max(spans)),
    }


def _mean(summaries: Sequence[GroupSummary]) -> float:
    """Mean score of the trajectories that did not fail."""
    return float(np.nanmean([score for summary in summaries for score in summary.scores]))


def step_metrics(
    times: Mapping[str, float], *, update: Mapping[str, float], settled: Sequence[GroupSummary]
) -> dict[str, float]:
    """A step's times (of `StageTimer`), the metrics of its `update`, and those of the groups `settled` since
    the previous step."""
    busy_s = update["time/learn_s"] + times["time/weights_s"]
    return {
        "learner/logprob_gap/mean": math.nan,  # if `update` has compared no token
        **times,
        **rollout_metrics(settled, duration_s=times["time/step_s"]),
        **update,
        "learner/idle/share": max(0.0, 1.0 - busy_s / times["time/step_s"]),
    }


def engine_metrics(usages: Sequence[EngineUsage]) -> dict[str, float]:
    """Mean use of the engines' time since the previous step, or since the cold start. NaN without engines,
    while the only one is being replaced."""

    def mean(seconds: Callable[[EngineUsage], float]) -> float:
        parts = [seconds(usage) / max(usage.duration_s, 1e-9) for usage in usages]
        return float(np.mean(parts)) if parts else math.nan

    return {
        "engine/idle/share": mean(lambda usage: usage.idle_s),
        "engine/paused/share": mean(lambda usage: usage.paused_s),
        "engine/requests/mean": mean(lambda usage: usage.request_s),
    }


class LogprobGapError(RuntimeError):
    """Engine and learner disagree about the policy: the sampled distribution is not the trained one."""


def require_agreement(metrics: Mapping[str, float], *, max_logprob_gap: float) -> None:
    """Raises `LogprobGapError` if a step's `learner/logprob_gap/mean` exceeds the limit. It is NaN, which
    passes, if no token of the step is of the current version."""
    gap = metrics["learner/logprob_gap/mean"]
    if gap > max_logprob_gap:
        raise LogprobGapError(
            f"learner/logprob_gap/mean={gap:.4f}: engine and learner must agree on sampled tokens within "
            f"learner.max_logprob_gap={max_logprob_gap}: resume by `userrl train RUN_FOLDER` with a higher "
            "limit if it is rounding; to set learner.dtype and engine.dtype alike, start a new run "
            "with --run NAME"
        )


class StageTimer:
    """Seconds of each stage of a step; a stage may occur several times."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._stages: defaultdict[str, float] = defaultdict(float)

    def end(self, stage: str) -> None:
        """Adds the time since the last `end` to this stage."""
        now = time.perf_counter()
        self._stages[stage] += now - self._last
        self._last = now

    def metrics(self) -> dict[str, float]:
        """`time/<stage>_s`, and their sum as `time/step_s`."""
        stages = {f"time/{stage}_s": seconds for stage, seconds in self._stages.items()}
        return {**stages, "time/step_s": self._last - self._start}
