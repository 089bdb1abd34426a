"""The numbers of a finished group, read off its table."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from actors.trajectory import GroupOrder, GroupSummary, StopReason
from simulators.user import WEB
from simulators.users.quality_metrics import NO_COUNTS, GaugeCounts


def summarize(
    order: GroupOrder, table: pa.Table, *, duration_s: float, gauges: GaugeCounts = NO_COUNTS
) -> GroupSummary:
    """A summary of a table that has its `reward` column."""
    of, rewards = table["trajectory"].to_numpy(), table["reward"].to_numpy()
    size = order.num_dialogues
    first_rows = np.searchsorted(of, np.arange(size))
    failed = table["failed"].to_numpy()[first_rows]
    simulator = next((name for name in table["simulator"].to_pylist() if name not in ("", WEB)), "")
    scores = np.bincount(of, weights=table["env_reward"].to_numpy(), minlength=size)
    versions = table["policy_versions"].combine_chunks().flatten().to_numpy()
    totals = np.bincount(of, weights=rewards, minlength=size)
    # The one row of a trajectory without turns holds no completion.
    num_tokens = _lengths(table["completion_ids"])
    limits = table["user_concurrency"].to_numpy()
    can_train = ~failed & np.isfinite(totals)
    trainable = versions if can_train.all() else versions[can_train[of].repeat(num_tokens)]
    stop_reasons = table["stop_reason"].to_pylist()
    spans = [slice(first, end) for first, end in pairwise([*first_rows.tolist(), table.num_rows])]
    states = turn_states(table)
    numbers: dict[ToldFacts, int] = {}
    return GroupSummary(
        group_id=order.group_id,
        task_key=order.task_key,
        rewards=totals.tolist(),
        scores=np.where(failed, np.nan, scores).tolist(),
        num_turns=np.bincount(of, weights=num_tokens > 0, minlength=size).astype(int).tolist(),
        turn_rewards=[rewards[span].tolist() for span in spans],
        turn_tokens=[num_tokens[span].tolist() for span in spans],
        turn_states=[[numbers.setdefault(state, len(numbers)) for state in keys] for keys in states],
        stop_reasons=[StopReason(stop_reasons[span.start]) for span in spans],
        simulator=simulator,
        persona=str(table["persona"][0]),
        num_policy_tokens=int(num_tokens.sum()),
        oldest_version=int(trainable.min(initial=np.iinfo(np.int32).max)),
        newest_version=int(versions.max(initial=0)),
        version_spans=_spans(versions, num_tokens=np.add.reduceat(num_tokens, first_rows)),
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


ToldFacts = frozenset[str]
"""All that a policy has been told."""


def turn_states(table: pa.Table) -> list[list[ToldFacts]]:  # [num_dialogues][num_turns]
    """What the policy had been told before each turn of a group's table, by the gym's own `news`."""
    of, told = table["trajectory"].to_numpy(), table["news"].to_pylist()
    starts = np.flatnonzero(np.diff(of, prepend=-1)).tolist()
    return [state_keys(told[first:end]) for first, end in pairwise([*starts, table.num_rows])]


def state_keys(told: Sequence[str]) -> list[ToldFacts]:  # [num_turns]
    """A trajectory's state before each turn: what it has been told so far, in whatever order and however
    often.

    Two trajectories that asked the same questions in another order are in the same state. To be told nothing
    leaves the state as it is.
    """
    states, state = [], ToldFacts()
    for news in told:
        states.append(state)
        if news:
            state |= {news}
    return states


def _spans(versions: np.ndarray, *, num_tokens: np.ndarray) -> list[int]:  # [num_dialogues]
    """Newest minus oldest of each trajectory's versions, which stand end to end, `num_tokens`
    [num_dialogues] of each. 0 without a token."""
    spans, spoke = np.zeros(len(num_tokens), np.int32), num_tokens > 0
    if len(versions):
        firsts = (np.cumsum(num_tokens) - num_tokens)[spoke]
        newest, oldest = (extreme.reduceat(versions, firsts) for extreme in (np.maximum, np.minimum))
        spans[spoke] = newest - oldest
    return spans.tolist()


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.diff(column.combine_chunks().offsets.to_numpy())
