"""Partial rollouts: the completed turns of unfinished dialogues, serialised and published to the work
source, so that another rollout actor can resume a dialogue after a crash.

Of a turn only what chance, a model or a person decided is kept: the sampled completion and the user's reply.
Prompts, feedback and rewards are recomputed by renderer and rules; the feedback is kept to check that they
come out the same.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from actors.group_transport import read_group_batch
from actors.trajectory import Completion, Turn
from simulators.user import UserReply

TURNS = pa.schema(
    [
        ("group_id", pa.int64()),
        ("trajectory", pa.int32()),
        ("turn", pa.int32()),
        ("completion_ids", pa.list_(pa.int32())),
        ("behavior_logprobs", pa.list_(pa.float32())),
        ("policy_versions", pa.list_(pa.int32())),
        ("user_reply", pa.string()),
        ("feedback", pa.string()),
        ("policy_s", pa.float64()),
        ("queue_s", pa.float64()),
        ("user_s", pa.float64()),
        ("tool_s", pa.float64()),
    ]
)
PUBLISH_EVERY_S = 0.05
"""Delay before a completed turn is sent: a kill costs a dialogue the turns of this time and the current
one."""
SECONDS = ("policy_s", "queue_s", "user_s", "tool_s")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CompletedTurn:
    """The recorded part of a completed turn.

    Example: `CompletedTurn(completion=Completion.scripted([5, 2]), user_reply=None, feedback="no such file",
    seconds={"policy_s": 0.2, "queue_s": 0.0, "user_s": 0.0, "tool_s": 0.01})`.
    """

    completion: Completion
    user_reply: UserReply | None
    feedback: str
    seconds: Mapping[str, float]
    """By the fields of `Turn`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TurnUpdate:
    """A completed turn to publish, with its group and trajectory."""

    group_id: int
    trajectory: int
    index: int
    """Of the turn, from 0."""
    turn: Turn


CompletedTurns = Mapping[int, Sequence[CompletedTurn]]
"""The completed turns of a group, by trajectory."""


class ReplayMismatchError(Exception):
    """The rules answer a recorded turn differently now: the dialogue must be played from the start."""


PublishTurn = Callable[[int, int, Turn], None]
"""(trajectory, index of the turn, turn): the turn is completed. Returns at once."""


def ignore_turn(trajectory: int, index: int, turn: Turn) -> None:
    """Publishes nothing."""


def encode_turns(updates: Sequence[TurnUpdate]) -> pa.Buffer:
    """The turns as an Arrow IPC stream of schema `TURNS`."""
    rows = [_encode_turn(update, update.turn) for update in updates]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TURNS) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=TURNS))
    return sink.getvalue()


def _encode_turn(update: TurnUpdate, turn: Turn) -> dict[str, Any]:
    return {
        "group_id": update.group_id,
        "trajectory": update.trajectory,
        "turn": update.index,
        "completion_ids": turn.completion.token_ids,
        "behavior_logprobs": turn.completion.logprobs,
        "policy_versions": turn.completion.policy_versions,
        "user_reply": json.dumps(asdict(turn.user_reply)) if turn.user_reply else None,
        "feedback": turn.feedback,
        **{name: getattr(turn, name) for name in SECONDS},
    }


def read_partial_rollouts(rows: Sequence[pa.Buffer], *, group_id: int) -> dict[int, list[CompletedTurn]]:
    """A group's completed turns by trajectory, out of buffers that hold those of other groups, too, in the
    order in which they were published. A turn that was published twice replaces the first one and all that
    followed it: the dialogue was played from the start again."""
    completed: dict[int, list[CompletedTurn]] = {}
    for buffer in rows:
        for row in read_group_batch(buffer).to_pylist():
            if row["group_id"] != group_id:
                continue
            turns = completed.setdefault(row["trajectory"], [])
            del turns[row["turn"] :]
            if len(turns) == row["turn"]:  # else earlier ones are missing, and it cannot be replayed
                turns.append(_decode_turn(row))
    return completed


def _decode_turn(row: Mapping[str, Any]) -> CompletedTurn:
    reply = row["user_reply"]
    return CompletedTurn(
        completion=Completion.of(
            row["completion_ids"], logprobs=row["behavior_logprobs"], policy_versions=row["policy_versions"]
        ),
        user_reply=None if reply is None else UserReply(**json.loads(reply)),
        feedback=row["feedback"],
        seconds={name: row[name] for name in SECONDS},
    )


class TurnPublisher:
    """Sends completed turns to a work source in the background. Turns that complete within `every_s`, or
    while a call is in flight, share the next call: a call costs as much CPU as a turn."""

    def __init__(
        self,
        send: Callable[[list[int], pa.Buffer], Awaitable[object]],
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        every_s: float = PUBLISH_EVERY_S,
    ):
        """`send` takes the turns' group ids, one for each turn, and the turns; `spawn` starts a background
        task."""
        self._send = send
        self._spawn = spawn
        self._every_s = every_s
        self._unsent: list[TurnUpdate] = []
        self._sending: asyncio.Task[None] | None = None

    def for_group(self, group_id: int) -> PublishTurn:
        """The function that publishes turns of this group."""

        def publish(trajectory: int, index: int, turn: Turn) -> None:
            self._unsent.append(TurnUpdate(group_id=group_id, trajectory=trajectory, index=index, turn=turn))
            if self._sending is None or self._sending.done():
                self._sending = self._spawn(self._send_all())

        return publish

    async def _send_all(self) -> None:
        while self._unsent:
            await asyncio.sleep(self._every_s)
            updates, self._unsent = self._unsent, []
            await self._send([update.group_id for update in updates], encode_turns(updates))
