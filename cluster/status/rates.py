"""Speed and bottleneck of a run, computed from the last lines of metrics.jsonl. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.workers.autoscaler import Bottleneck, find_bottleneck

MetricsLine = Mapping[str, Any]
"""One step of metrics.jsonl."""
GROUP = "group "
"""Begins, in what the buffer says that it waits for, the part about one group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Means over the last steps, each weighed by its time."""

    step_s: float | None
    """Seconds a step."""
    groups_per_s: float | None
    dialogues_per_min: float | None
    """Trained or dropped."""
    tokens_per_s: float | None
    """Sampled from the policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitStatus:
    """What waits for what."""

    text: str
    """What the step at hand waits for; empty where it continues."""
    since_s: float | None
    orders: Sequence[str]
    """The group orders that it names: the oldest ones with their rollout actor and age, and lost ones."""
    limit: Bottleneck
    """The bottleneck over the last steps: engines, dialogues or learners; empty: none waits much."""
    learner_idle: float | None
    engine_idle: float | None
    """Shares of the last steps."""
    groups_ready: float | None
    slots_taken: float | None
    trajectories_in_flight: float | None
    num_reissued: float | None
    """Groups that were given to another."""
    num_journal_failures: float | None
    num_archive_failures: float | None
    num_checkpoint_failures: float | None
    journal_bytes: int
    disk_free_bytes: int


def rates_of(lines: Sequence[MetricsLine], *, dialogues_per_group: int | None) -> Rates:
    """Of the last steps; where there is one line before them, their dialogues are counted from it."""
    counted = lines[1:] if len(lines) > 1 else lines
    seconds = sum(line.get("time/step_s") or 0.0 for line in counted)
    if not seconds:
        return Rates(step_s=None, groups_per_s=None, dialogues_per_min=None, tokens_per_s=None)
    resolved = _num_resolved_since(lines)
    dialogues_per_s = None if resolved is None else resolved / seconds
    groups_per_s = None
    if dialogues_per_s is not None and dialogues_per_group:
        groups_per_s = dialogues_per_s / dialogues_per_group
    return Rates(
        step_s=seconds / len(counted),
        groups_per_s=groups_per_s,
        dialogues_per_min=None if dialogues_per_s is None else 60 * dialogues_per_s,
        tokens_per_s=_mean(counted, "rollout/tokens_per_s"),
    )


def waits_of(
    lines: Sequence[MetricsLine],
    *,
    text: str,
    since_s: float | None,
    places: int | None,
    is_synchronous: bool,
    disk_free_bytes: int,
    journal_bytes: int,
) -> WaitStatus:
    """`text` is what the driver says just now, the rest what the steps said; `places`: sequences that one
    engine computes at once."""
    last: MetricsLine = lines[-1] if lines else {}
    counted = lines[1:] if len(lines) > 1 else lines
    return WaitStatus(
        text=text,
        since_s=since_s,
        orders=[part for part in text.split("; ") if part.startswith(GROUP)],
        limit=_limit(counted, places=places, is_synchronous=is_synchronous),
        learner_idle=_mean(counted, "learner/idle/share"),
        engine_idle=_mean(counted, "engine/idle/share"),
        groups_ready=last.get("buffer/groups_ready"),
        slots_taken=last.get("buffer/slots_taken"),
        trajectories_in_flight=last.get("ledger/in_flight"),
        num_reissued=last.get("buffer/reissued"),
        num_journal_failures=last.get("buffer/journal_failures"),
        num_archive_failures=last.get("buffer/archive_failures"),
        num_checkpoint_failures=last.get("checkpoint/failures"),
        journal_bytes=journal_bytes,
        disk_free_bytes=disk_free_bytes,
    )


LIMIT_KEYS = (
    *("time/step_s", "time/wait_s", "engine/idle/share"),
    *("engine/requests/mean", "learner/idle/share"),
)


def _limit(lines: Sequence[MetricsLine], *, places: int | None, is_synchronous: bool) -> Bottleneck:
    means = {key: _mean(lines, key) for key in LIMIT_KEYS}
    known = {key: value for key, value in means.items() if value is not None}
    if not places or len(known) < len(means):
        return ""
    return find_bottleneck(known, places=places, is_synchronous=is_synchronous)


def _num_resolved_since(lines: Sequence[MetricsLine]) -> float | None:
    """Trajectories trained or dropped by all lines but the first; by the first if it is of step 1."""
    if not lines:
        return None
    before = 0.0
    if len(lines) > 1:
        before = _num_resolved(lines[0])
    elif lines[0].get("step") != 1:
        return None
    return _num_resolved(lines[-1]) - before


def _num_resolved(line: MetricsLine) -> float:
    return line.get("ledger/issued", 0.0) - line.get("ledger/in_flight", 0.0)


def _mean(lines: Sequence[MetricsLine], key: str) -> float | None:
    """Weighed by time; of the steps that have the number."""
    known = [(line.get("time/step_s") or 0.0, line[key]) for line in lines if line.get(key) is not None]
    seconds = sum(weight for weight, _ in known)
    return sum(weight * value for weight, value in known) / seconds if seconds else None
