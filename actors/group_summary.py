"""Summary of a finished group: its numbers, computed from its scored table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.trajectory import GroupOrder, GroupSummary, StopReason
from actors.trajectory_table import num_tokens
from simulators.user import WEB
from simulators.users.quality_metrics import NO_COUNTS, GaugeCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class CreditedTable:
    """A group's scored table, with what cannot be trained of it."""

    table: pa.Table
    drop_reasons: Sequence[str]  # [num_dialogues]
    """Why each trajectory cannot be trained, independent of its group; empty if it can."""
    group_drop_reason: str = ""
    """Why the group as a whole cannot be trained; empty if it can."""


def summarize(
    order: GroupOrder, credited: CreditedTable, *, duration_s: float, gauges: GaugeCounts = NO_COUNTS
) -> GroupSummary:
    """The summary of a group's table, which has its `reward` column."""
    table = credited.table
    of, rewards = table["trajectory"].to_numpy(), table["reward"].to_numpy()
    size = order.num_dialogues
    first_rows = np.searchsorted(of, np.arange(size))
    failed = table["failed"].to_numpy()[first_rows]
    simulator = next((name for name in table["simulator"].to_pylist() if name not in ("", WEB)), "")
    scores = np.bincount(of, weights=table["env_reward"].to_numpy(), minlength=size)
    versions = table["policy_versions"].combine_chunks().flatten().to_numpy()
    totals = np.bincount(of, weights=rewards, minlength=size)
    lengths = num_tokens(table)
    limits = table["user_concurrency"].to_numpy()
    is_usable = np.array([not reason for reason in credited.drop_reasons])
    trainable = versions if is_usable.all() else versions[is_usable[of].repeat(lengths)]
    stop_reasons = table["stop_reason"].to_pylist()
    return GroupSummary(
        group_id=order.group_id,
        task_key=order.task_key,
        rewards=totals.tolist(),
        scores=np.where(failed, np.nan, scores).tolist(),
        num_turns=np.bincount(of, weights=lengths > 0, minlength=size).astype(int).tolist(),
        stop_reasons=[StopReason(stop_reasons[row]) for row in first_rows.tolist()],
        drop_reasons=list(credited.drop_reasons),
        group_drop_reason=credited.group_drop_reason,
        simulator=simulator,
        persona=str(table["persona"][0]),
        num_policy_tokens=int(lengths.sum()),
        oldest_version=int(trainable.min(initial=np.iinfo(np.int32).max)),
        newest_version=int(versions.max(initial=0)),
        version_spans=_spans(versions, num_tokens=np.add.reduceat(lengths, first_rows)),
        duration_s=duration_s,
        policy_s=float(table["policy_s"].to_numpy().sum()),
        queue_s=float(table["queue_s"].to_numpy().sum()),
        user_s=float(table["user_s"].to_numpy().sum()),
        tool_s=float(table["tool_s"].to_numpy().sum()),
        reward_s=float(table["reward_s"].to_numpy().sum()),
        user_retries=int(table["user_retries"].to_numpy().sum()),
        user_concurrency=float(limits[limits > 0].mean()) if limits.any() else 0.0,
        gauges=gauges,
    )


def _spans(versions: np.ndarray, *, num_tokens: np.ndarray) -> list[int]:  # [num_dialogues]
    """Newest minus oldest version of each trajectory, 0 without a token. `versions` are those of all tokens,
    `num_tokens` [num_dialogues] how many each trajectory has."""
    spans, has_tokens = np.zeros(len(num_tokens), np.int32), num_tokens > 0
    if len(versions):
        firsts = (np.cumsum(num_tokens) - num_tokens)[has_tokens]
        newest, oldest = (extreme.reduceat(versions, firsts) for extreme in (np.maximum, np.minimum))
        spans[has_tokens] = newest - oldest
    return spans.tolist()
