"""Drop reasons: why a trajectory or a group is not trained. One list and one rule, shared by rollout actors,
buffer and learner. NumPy and Arrow only; the same on every rank."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy import ndarray

from actors.trajectory import StopReason
from actors.trajectory_table import num_tokens

TrajectoryKey = tuple[int, int]
"""(group_id, trajectory)."""
DROP_REASONS = (
    *("flat", "failed", "cut", "surplus", "unscored"),
    *("bad_logprob", "no_tokens", "too_few", "stale"),
)
"""flat: no usable token of the group has an advantage, so there is no gradient. failed: a failure that is not
the policy's. cut: longer than a dialogue may take. surplus: its group had enough trajectories without it.
unscored: the reward or an advantage is not finite, as when a judge gave no rating. bad_logprob: the engine's
logprob of some token is not finite, which would spoil the whole step. no_tokens: no completion token to
train. too_few: fewer than two trajectories of the group are usable. stale: older than allowed when a step
wanted the group."""
GROUP_REASONS = ("flat", "too_few", "stale")
"""Reasons of whole groups; the others are those of one trajectory."""
LEDGER_REASONS = tuple(reason for reason in DROP_REASONS if reason != "bad_logprob")
"""The reasons that the buffer's ledger counts. A bad logprob is seen by the learner only."""
LEARNER_REASONS = tuple(reason for reason in DROP_REASONS if reason not in GROUP_REASONS)
"""The reasons that the learner counts."""
EARLY_STOPS = {StopReason.TIME_LIMIT: "cut", StopReason.SURPLUS: "surplus"}
"""Early stops, which are not counted as failures."""


def drop_reasons(table: pa.Table, *, scores: ndarray) -> dict[TrajectoryKey, str]:
    """Reason of each trajectory that cannot be trained. `scores` [num_rows] must be finite on every row."""
    failed = table["failed"].to_numpy()
    # "failed" is later, so that it overrides the missing scores that it causes; so are early stops.
    rows_of = {"unscored": ~np.isfinite(scores), "failed": failed}
    if failed.any():
        for stop_reason, reason in EARLY_STOPS.items():
            is_stopped = pc.call_function("equal", [table["stop_reason"], pa.scalar(str(stop_reason))])
            rows_of[reason] = is_stopped.to_numpy()
    reasons: dict[TrajectoryKey, str] = {}
    for reason, mask in rows_of.items():
        reasons |= dict.fromkeys(_keys_where(table, mask), reason)
    return reasons


def group_drop_reasons(table: pa.Table) -> list[str]:  # [num_dialogues]
    """Reason of each trajectory of one scored group; empty if it can be trained."""
    of = table["trajectory"].to_numpy()
    rewards = np.bincount(of, weights=table["reward"].to_numpy())
    lengths = np.bincount(of, weights=num_tokens(table))
    reasons = drop_reasons(table, scores=rewards[of])
    group_id = table["group_id"][0].as_py()
    return [
        reasons.get((group_id, index), "" if lengths[index] else "no_tokens") for index in range(len(rewards))
    ]


def learner_drop_reasons(table: pa.Table, *, advantages: ndarray) -> dict[TrajectoryKey, str]:
    """Reason of each trajectory that the learner must not train: `drop_reasons`, or a bad logprob.
    `advantages` is [num_rows]."""
    with np.errstate(over="ignore"):  # beyond float32, which samples have, is not finite either
        scores = advantages.astype(np.float32)
    bad = dict.fromkeys(_keys_where(table, _has_bad_logprob(table)), "bad_logprob")
    return bad | drop_reasons(table, scores=scores)


def num_dropped(table: pa.Table, *, advantages: ndarray, sampled: Collection[TrajectoryKey]) -> Counter[str]:
    """Number of the table's trajectories without a sample, by reason; `sampled` are those with one."""
    without_sample = trajectory_keys(table) - set(sampled)
    if not without_sample:
        return Counter()
    reasons = learner_drop_reasons(table, advantages=advantages)
    counts = Counter(reasons.values())
    counts["no_tokens"] = len(without_sample - reasons.keys())
    return counts


def drop_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """The fixed keys `learner/num_dropped/<reason>`."""
    return {f"learner/num_dropped/{reason}": float(counts.get(reason, 0)) for reason in LEARNER_REASONS}


def trajectory_keys(table: pa.Table) -> set[TrajectoryKey]:
    """The trajectories in the table."""
    return set(zip(table["group_id"].to_pylist(), table["trajectory"].to_pylist(), strict=True))


def _keys_where(table: pa.Table, mask: ndarray) -> set[TrajectoryKey]:
    return trajectory_keys(table.filter(pa.array(mask))) if mask.any() else set()


def _has_bad_logprob(table: pa.Table) -> ndarray:  # [num_rows]
    """Whether some token of the row has a non-finite logprob."""
    logprobs = table["behavior_logprobs"].combine_chunks()
    is_bad = ~np.isfinite(logprobs.flatten().to_numpy(zero_copy_only=False))
    bad = np.zeros(table.num_rows, bool)
    if is_bad.any():
        rows = np.repeat(np.arange(table.num_rows), np.diff(logprobs.offsets.to_numpy()))
        bad[rows[is_bad]] = True
    return bad
