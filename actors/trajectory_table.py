"""The Arrow table of a group, one row per turn. Transport, buffer and Parquet files share its schema."""

import json
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np
import pyarrow as pa

from actors.trajectory import NO_COMPLETION, GroupOrder, Trajectory, Turn, as_ids
from simulators.input_limits import whole_characters
from simulators.user import UserReply

SCHEMA = pa.schema(
    [
        ("group_id", pa.int64()),
        ("trajectory", pa.int32()),
        ("turn", pa.int32()),
        ("gym", pa.string()),
        ("task_id", pa.string()),
        ("stop_reason", pa.string()),
        ("failed", pa.bool_()),
        ("error", pa.string()),
        ("forked", pa.bool_()),
        ("context_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("behavior_logprobs", pa.list_(pa.float32())),
        ("policy_versions", pa.list_(pa.int32())),
        ("system", pa.string()),
        ("opening", pa.string()),
        ("text", pa.string()),
        ("choice", pa.string()),
        ("content", pa.string()),
        ("feedback", pa.string()),
        ("env_reward", pa.float64()),
        ("progress", pa.float64()),
        ("news", pa.string()),
        ("gold", pa.string()),
        ("persona", pa.string()),
        ("simulator", pa.string()),
        ("user_model", pa.string()),
        ("user_prompt_hash", pa.string()),
        ("user_seed", pa.int64()),
        ("user_tokens", pa.int32()),
        ("user_latency_s", pa.float64()),
        ("user_retries", pa.int32()),
        ("user_concurrency", pa.int32()),
        ("user_facts", pa.string()),
        ("policy_s", pa.float64()),
        ("queue_s", pa.float64()),
        ("user_s", pa.float64()),
        ("tool_s", pa.float64()),
        ("reward_s", pa.float64()),
    ]
)
TURN_STAGES = ("policy", "queue", "user", "tool", "reward")
"""The stages of a turn's time: the columns `<stage>_s`."""
REWARD = pa.field("reward", pa.float64())
"""The column that scoring adds: the turn's reward for the learner."""
SCORED = SCHEMA.append(REWARD)
"""Schema of the tables that rollout actors send."""

NO_REPLY = UserReply(text="", simulator="")
NO_TURN = Turn(
    context_ids=as_ids(()),
    forked=True,
    completion=NO_COMPLETION,
    text="",
    action=None,
    feedback="",
    reward=0.0,
)
"""The row of a trajectory without turns, so that every trajectory has one."""


def to_table(order: GroupOrder, trajectories: Sequence[Trajectory]) -> pa.Table:
    """The group's turns in order. A trajectory that failed before its first turn has one row, without tokens.
    Raises ValueError for a group without trajectories."""
    turns_of = [trajectory.turns or [NO_TURN] for trajectory in trajectories]
    turns = list(chain.from_iterable(turns_of))
    lengths = np.array([len(one) for one in turns_of])
    of = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    order_key, starts = order.task_key, (np.cumsum(lengths) - lengths).astype(np.int32)

    def spread(values: list[str]) -> pa.Array:
        """The text of each trajectory, repeated on all its rows."""
        return _repeated(values[0], len(of)) if _all_same(values) else _text(values).take(pa.array(of))

    columns = {
        "group_id": pa.repeat(pa.scalar(order.group_id, pa.int64()), len(of)),
        "trajectory": pa.array(of),
        "turn": pa.array(np.arange(len(of), dtype=np.int32) - starts[of]),
        "gym": _repeated(order_key.gym, len(of)),
        "task_id": _repeated(order_key.task_id, len(of)),
        "stop_reason": spread([str(trajectory.stop_reason) for trajectory in trajectories]),
        "failed": pa.array(np.array([one.stop_reason.failed for one in trajectories])[of]),
        "error": spread([trajectory.error for trajectory in trajectories]),
        "system": spread([trajectory.system for trajectory in trajectories]),
        "opening": spread([trajectory.opening for trajectory in trajectories]),
        "gold": spread([_gold_of(trajectory) for trajectory in trajectories]),
        "persona": spread([trajectory.persona for trajectory in trajectories]),
        "simulator": _text(
            [
                _simulator_of(trajectory, turn)
                for trajectory, mine in zip(trajectories, turns_of, strict=True)
                for turn in mine
            ]
        ),
        "forked": pa.array([turn.forked for turn in turns], pa.bool_()),
        "text": _text([turn.text for turn in turns]),
        "choice": _text([turn.action.choice if turn.action else None for turn in turns]),
        "content": _text([turn.action.content if turn.action else None for turn in turns]),
        "feedback": _text([turn.feedback for turn in turns]),
        "news": _text([turn.news or turn.feedback for turn in turns]),
        "env_reward": _floats([turn.reward for turn in turns]),
        "progress": _floats([turn.progress for turn in turns]),
        "policy_s": _floats([turn.policy_s for turn in turns]),
        "queue_s": _floats([turn.queue_s for turn in turns]),
        "user_s": _floats([turn.user_s for turn in turns]),
        "tool_s": _floats([turn.tool_s for turn in turns]),
        "reward_s": pa.array(np.zeros(len(of))),
        **_token_columns(turns),
        **_reply_columns([turn.user_reply or NO_REPLY for turn in turns]),
    }
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _token_columns(turns: Sequence[Turn]) -> dict[str, pa.Array]:
    completions = [turn.completion for turn in turns]
    ends = _ends([completion.token_ids for completion in completions])
    contexts = [turn.context_ids for turn in turns]
    return {
        "context_ids": _ragged(contexts, ends=_ends(contexts)),
        "completion_ids": _ragged([completion.token_ids for completion in completions], ends=ends),
        "behavior_logprobs": _ragged([completion.logprobs for completion in completions], ends=ends),
        "policy_versions": _ragged([completion.policy_versions for completion in completions], ends=ends),
    }


def _reply_columns(replies: Sequence[UserReply]) -> dict[str, pa.Array]:
    return {
        "user_model": _text([reply.model for reply in replies]),
        "user_prompt_hash": _text([reply.prompt_hash for reply in replies]),
        "user_seed": pa.array([reply.seed for reply in replies], pa.int64()),
        "user_tokens": pa.array([reply.num_tokens for reply in replies], pa.int32()),
        "user_latency_s": _floats([reply.latency_s for reply in replies]),
        "user_retries": pa.array([reply.num_retries for reply in replies], pa.int32()),
        "user_concurrency": pa.array([reply.concurrency for reply in replies], pa.int32()),
        "user_facts": _text([json.dumps(dict(reply.facts)) if reply.facts else "" for reply in replies]),
    }


def num_tokens(table: pa.Table) -> np.ndarray:  # [num_rows]
    """Completion tokens of each row; 0 in the one row of a trajectory without turns."""
    return np.diff(table["completion_ids"].combine_chunks().offsets.to_numpy())


def with_reward_seconds(table: pa.Table, seconds: float) -> pa.Table:
    """The group's table with `seconds` of scoring: each trajectory waited for them, split equally over its
    turns."""
    of = table["trajectory"].to_numpy()
    shares = seconds / np.bincount(of)[of]
    return table.set_column(SCHEMA.get_field_index("reward_s"), SCHEMA.field("reward_s"), pa.array(shares))


def _gold_of(trajectory: Trajectory) -> str:
    """A JSON list of {"choice", "content"}; empty if no gold call is known."""
    calls = [{"choice": action.choice, "content": action.content} for action in trajectory.gold]
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def _simulator_of(trajectory: Trajectory, turn: Turn) -> str:
    """The simulator that replied in this turn; without a reply, the one that failed a failed trajectory."""
    if turn.user_reply is not None:
        return turn.user_reply.simulator
    return trajectory.simulator if trajectory.stop_reason.failed else ""


def _all_same(values: Sequence[str | None]) -> bool:
    return values.count(values[0]) == len(values)


def _repeated(value: str | None, size: int) -> pa.Array:
    return pa.repeat(_scalar(value), size)


@lru_cache(maxsize=256)
def _scalar(value: str | None) -> pa.Scalar:
    """Cached, since most of them occur in every group."""
    return pa.scalar(None if value is None else whole_characters(value), pa.string())


def _text(values: Sequence[str | None]) -> pa.Array:
    """A text column. Many hold one text only, which Arrow repeats faster than it converts each of them."""
    if _all_same(values):
        return _repeated(values[0], len(values))
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:  # half a character from outside
        return pa.array([value and whole_characters(value) for value in values], pa.string())


def _floats(values: Sequence[float]) -> pa.Array:
    """Like `pa.array`, in a third of its time: no value can be null."""
    return pa.Array.from_buffers(pa.float64(), len(values), [None, pa.py_buffer(array("d", values))])


def _ends(parts: Sequence[np.ndarray]) -> pa.Array:
    """The offsets of a list column: 0, then the end of each part in their concatenation."""
    return pa.array(list(accumulate(map(len, parts), initial=0)), pa.int32())


def _ragged(parts: Sequence[np.ndarray], *, ends: pa.Array) -> pa.Array:
    """A list column from ragged parts, through one flat buffer."""
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate(parts)))
