"""A group as one Arrow table, a row a turn: transport, replay buffer and Parquet on disk share this
schema."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa

from actors.trajectory import NO_COMPLETION, GroupOrder, Trajectory, Turn
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
        ("user_facts", pa.string()),
        ("policy_s", pa.float64()),
        ("env_s", pa.float64()),
    ]
)
REWARD = pa.field("reward", pa.float64())
"""The column that the rewards room adds: what the turn is worth to the learner."""

NO_REPLY = UserReply(text="", simulator="")
NO_TURN = Turn(
    context_ids=(), forked=True, completion=NO_COMPLETION, text="", action=None, feedback="", reward=0.0
)
"""Keeps a row for a trajectory without turns, so that none goes unaccounted."""


def to_table(order: GroupOrder, trajectories: Sequence[Trajectory]) -> pa.Table:
    """The group's turns in order. A trajectory that failed before its first turn has one row without
    tokens."""
    rows = [
        (i, t, trajectory, turn)
        for i, trajectory in enumerate(trajectories)
        for t, turn in enumerate(trajectory.turns or [NO_TURN])
    ]
    turns = [turn for _, _, _, turn in rows]
    of = [trajectory for _, _, trajectory, _ in rows]
    replies = [turn.user_reply or NO_REPLY for turn in turns]
    columns: list[pa.Array] = [
        pa.array([order.group_id] * len(rows), pa.int64()),
        pa.array([i for i, _, _, _ in rows], pa.int32()),
        pa.array([t for _, t, _, _ in rows], pa.int32()),
        pa.array([order.task_key.gym] * len(rows)),
        pa.array([order.task_key.task_id] * len(rows)),
        pa.array([str(trajectory.stop_reason) for trajectory in of]),
        pa.array([trajectory.stop_reason.failed for trajectory in of]),
        pa.array([trajectory.error for trajectory in of]),
        pa.array([turn.forked for turn in turns]),
        _ragged((turn.context_ids for turn in turns), np.int32),
        _ragged((turn.completion.token_ids for turn in turns), np.int32),
        _ragged((turn.completion.logprobs for turn in turns), np.float32),
        _ragged((turn.completion.policy_versions for turn in turns), np.int32),
        pa.array([trajectory.system for trajectory in of]),
        pa.array([trajectory.opening for trajectory in of]),
        pa.array([turn.text for turn in turns]),
        pa.array([turn.action.choice if turn.action else None for turn in turns], pa.string()),
        pa.array([turn.action.content if turn.action else None for turn in turns], pa.string()),
        pa.array([turn.feedback for turn in turns]),
        pa.array([turn.reward for turn in turns], pa.float64()),
        pa.array([turn.progress for turn in turns], pa.float64()),
        pa.array([turn.news or turn.feedback for turn in turns]),
        pa.array([_gold_of(trajectory) for trajectory in of]),
        pa.array([trajectory.persona for trajectory in of]),
        pa.array([_answerer(trajectory, turn) for _, _, trajectory, turn in rows]),
        pa.array([reply.model for reply in replies]),
        pa.array([reply.prompt_hash for reply in replies]),
        pa.array([reply.seed for reply in replies], pa.int64()),
        pa.array([reply.num_tokens for reply in replies], pa.int32()),
        pa.array([reply.latency_s for reply in replies], pa.float64()),
        pa.array([reply.num_retries for reply in replies], pa.int32()),
        pa.array([json.dumps(dict(reply.facts)) if reply.facts else "" for reply in replies]),
        pa.array([turn.policy_s for turn in turns], pa.float64()),
        pa.array([turn.env_s for turn in turns], pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _gold_of(trajectory: Trajectory) -> str:
    """A JSON list of {"choice", "content"}; empty where no gold call is known."""
    calls = [{"choice": action.choice, "content": action.content} for action in trajectory.gold]
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def _answerer(trajectory: Trajectory, turn: Turn) -> str:
    """Who answered this turn; in a failed trajectory, where nobody did, who was asked in vain."""
    if turn.user_reply is not None:
        return turn.user_reply.simulator
    return trajectory.simulator if trajectory.stop_reason.failed else ""


def _ragged(parts: Iterable[Sequence[int] | Sequence[float]], dtype: type) -> pa.Array:
    """A list column from ragged parts, through one flat buffer."""
    parts = list(parts)
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(parts), dtype, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
