"""The numbers of a finished group, read off its table."""

import numpy as np
import pyarrow as pa

from actors.trajectory import GroupOrder, GroupSummary, StopReason
from simulators.gauges import NO_COUNTS, GaugeCounts
from simulators.user import WEB


def summarize(
    order: GroupOrder, table: pa.Table, *, duration_s: float, gauges: GaugeCounts = NO_COUNTS
) -> GroupSummary:
    """A summary of a table that has its `reward` column."""
    of = table["trajectory"].to_numpy()
    size = order.group_size
    first_rows = np.searchsorted(of, np.arange(size))
    failed = table["failed"].to_numpy()[first_rows]
    simulator = next((name for name in table["simulator"].to_pylist() if name not in ("", WEB)), "")
    scores = np.bincount(of, weights=table["env_reward"].to_numpy(), minlength=size)
    versions = table["policy_versions"].combine_chunks().flatten().to_numpy()
    # The one row of a trajectory without turns holds no completion.
    num_tokens = _lengths(table["completion_ids"])
    return GroupSummary(
        group_id=order.group_id,
        task_key=order.task_key,
        rewards=np.bincount(of, weights=table["reward"].to_numpy(), minlength=size).tolist(),
        scores=np.where(failed, np.nan, scores).tolist(),
        num_turns=np.bincount(of, weights=num_tokens > 0, minlength=size).astype(int).tolist(),
        stop_reasons=[StopReason(str(table["stop_reason"][int(row)])) for row in first_rows],
        simulator=simulator,
        persona=str(table["persona"][0]),
        num_policy_tokens=int(num_tokens.sum()),
        oldest_version=int(versions.min(initial=np.iinfo(np.int32).max)),
        newest_version=int(versions.max(initial=0)),
        duration_s=duration_s,
        policy_s=float(table["policy_s"].to_numpy().sum()),
        env_s=float(table["env_s"].to_numpy().sum()),
        user_retries=int(table["user_retries"].to_numpy().sum()),
        gauges=gauges,
    )


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.diff(column.combine_chunks().offsets.to_numpy())
