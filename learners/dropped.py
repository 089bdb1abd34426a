"""Why a trajectory gives the learner nothing, read from its group's table. NumPy and Arrow only; the same on
every rank."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
from numpy import ndarray

TrajectoryKey = tuple[int, int]
"""(group_id, trajectory)."""
DROPPED = ("failed", "unscored", "bad_logprob", "no_tokens")
"""failed: not the policy's doing. unscored: no finite advantage, as where there is no finite reward.
bad_logprob: the engine's logprob of some token is not finite, which would cost the whole step. no_tokens:
nothing that the policy said can be learned from."""


def drop_reasons(table: pa.Table, *, advantages: ndarray) -> dict[TrajectoryKey, str]:
    """Why trajectories must not be trained; those that may are not in it. `advantages` is [num_rows]."""
    logprobs = table["behavior_logprobs"].combine_chunks()
    rows = np.repeat(np.arange(table.num_rows), np.diff(logprobs.offsets.to_numpy()))
    not_finite = ~np.isfinite(logprobs.flatten().to_numpy(zero_copy_only=False))
    with np.errstate(over="ignore"):  # what is too large for the sample's float32 is not finite either
        unscored = ~np.isfinite(advantages.astype(np.float32))
    reasons: dict[TrajectoryKey, str] = {}
    for reason, is_so in (
        ("bad_logprob", np.isin(np.arange(table.num_rows), rows[not_finite])),
        ("unscored", unscored),
        ("failed", table["failed"].to_numpy()),  # last: it is why the others are so
    ):
        reasons |= dict.fromkeys(trajectory_keys(table.filter(pa.array(is_so))), reason)
    return reasons


def num_dropped(table: pa.Table, *, advantages: ndarray, sampled: Collection[TrajectoryKey]) -> Counter[str]:
    """Trajectories of the table by the reason for which they gave no sample; `sampled` are those that did."""
    reasons = drop_reasons(table, advantages=advantages)
    counts = Counter(reasons.values())
    counts["no_tokens"] = len(trajectory_keys(table) - reasons.keys() - set(sampled))
    return counts


def drop_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """The fixed keys `learner/num_dropped/<reason>`."""
    return {f"learner/num_dropped/{reason}": float(counts.get(reason, 0)) for reason in DROPPED}


def trajectory_keys(table: pa.Table) -> set[TrajectoryKey]:
    """The trajectories in the table."""
    return set(zip(table["group_id"].to_pylist(), table["trajectory"].to_pylist(), strict=True))
