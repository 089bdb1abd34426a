"""Drop reasons: why a trajectory of a group's table cannot be trained on. NumPy and Arrow only; the same on
every rank."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy import ndarray

from actors.trajectory import StopReason

TrajectoryKey = tuple[int, int]
"""(group_id, trajectory)."""
CUTS = {StopReason.TIME_LIMIT: "cut", StopReason.SURPLUS: "surplus"}
"""Ends from outside that are no failure, by what they are called."""
DROPPED = ("failed", "cut", "surplus", "unscored", "bad_logprob", "no_tokens")
"""failed: not the policy's doing. cut: longer than a dialogue may take. surplus: its group had enough without
it. unscored: no finite advantage, as where there is no finite reward.
bad_logprob: the engine's logprob of some token is not finite, which would cost the whole step. no_tokens:
nothing that the policy said can be learned from."""


def drop_reasons(table: pa.Table, *, advantages: ndarray) -> dict[TrajectoryKey, str]:
    """Why trajectories must not be trained; those that may are not in it. `advantages` is [num_rows]."""
    with np.errstate(over="ignore"):  # what is too large for the sample's float32 is not finite either
        unscored = ~np.isfinite(advantages.astype(np.float32))
    failed = table["failed"].to_numpy()  # late: it is why the others are so
    rows_of = {"bad_logprob": _has_bad_logprob(table), "unscored": unscored, "failed": failed}
    if failed.any():
        for reason, name in CUTS.items():
            is_cut = pc.call_function("equal", [table["stop_reason"], pa.scalar(str(reason))])
            rows_of[name] = is_cut.to_numpy()
    reasons: dict[TrajectoryKey, str] = {}
    for reason, is_so in rows_of.items():
        if is_so.any():
            reasons |= dict.fromkeys(trajectory_keys(table.filter(pa.array(is_so))), reason)
    return reasons


def _has_bad_logprob(table: pa.Table) -> ndarray:  # [num_rows]
    """Whether some token of the row has a logprob that is not finite."""
    logprobs = table["behavior_logprobs"].combine_chunks()
    is_bad = ~np.isfinite(logprobs.flatten().to_numpy(zero_copy_only=False))
    bad = np.zeros(table.num_rows, bool)
    if is_bad.any():
        rows = np.repeat(np.arange(table.num_rows), np.diff(logprobs.offsets.to_numpy()))
        bad[rows[is_bad]] = True
    return bad


def num_dropped(table: pa.Table, *, advantages: ndarray, sampled: Collection[TrajectoryKey]) -> Counter[str]:
    """Trajectories of the table by the reason for which they gave no sample; `sampled` are those that did."""
    without_sample = trajectory_keys(table) - set(sampled)
    if not without_sample:
        return Counter()
    reasons = drop_reasons(table, advantages=advantages)
    counts = Counter(reasons.values())
    counts["no_tokens"] = len(without_sample - reasons.keys())
    return counts


def drop_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """The fixed keys `learner/num_dropped/<reason>`."""
    return {f"learner/num_dropped/{reason}": float(counts.get(reason, 0)) for reason in DROPPED}


def trajectory_keys(table: pa.Table) -> set[TrajectoryKey]:
    """The trajectories in the table."""
    return set(zip(table["group_id"].to_pylist(), table["trajectory"].to_pylist(), strict=True))
