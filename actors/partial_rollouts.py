"""Dialogues that were begun elsewhere: the turns that are over, in the form that travels and is kept, and how
they are told while others are played.

Only what chance, a model or a person decided is kept of a turn: what was sampled and what the user replied.
The rest, prompts, feedback and rewards, comes out of renderer and rules again; the feedback is kept to see
that it does.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
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
TELL_EVERY_S = 0.05
"""A turn that is over is told within it: what a kill takes of a dialogue is this and the turn under way."""
SECONDS = ("policy_s", "queue_s", "user_s", "tool_s")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CompletedTurn:
    """A turn that is over."""

    completion: Completion
    user_reply: UserReply | None
    feedback: str
    seconds: Mapping[str, float]
    """By the fields of `Turn`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TurnUpdate:
    """A turn to be told, and whose it is."""

    group_id: int
    trajectory: int
    index: int
    """Of the turn, from 0."""
    turn: Turn


class ReplayMismatchError(Exception):
    """The rules answer a recorded turn otherwise than then: its dialogue must begin anew."""


PublishTurn = Callable[[int, int, Turn], None]
"""(trajectory, index of the turn, turn): the turn is over. Returns at once."""


def ignore_turn(trajectory: int, index: int, turn: Turn) -> None:
    """Told to nobody."""


def to_rows(told: Sequence[TurnUpdate]) -> pa.Buffer:
    """Turns as an Arrow IPC stream."""
    turns = [one.turn for one in told]
    columns = {
        "group_id": [one.group_id for one in told],
        "trajectory": [one.trajectory for one in told],
        "turn": [one.index for one in told],
        "completion_ids": [turn.completion.token_ids for turn in turns],
        "behavior_logprobs": [turn.completion.logprobs for turn in turns],
        "policy_versions": [turn.completion.policy_versions for turn in turns],
        "user_reply": [json.dumps(asdict(turn.user_reply)) if turn.user_reply else None for turn in turns],
        "feedback": [turn.feedback for turn in turns],
        **{name: [getattr(turn, name) for turn in turns] for name in SECONDS},
    }
    arrays = [pa.array(columns[name], TURNS.field(name).type) for name in TURNS.names]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TURNS) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=TURNS))
    return sink.getvalue()


def read_partial_rollouts(rows: Sequence[pa.Buffer], *, group_id: int) -> dict[int, list[CompletedTurn]]:
    """A group's turns by trajectory, from what was told of it and of others, in that order. A turn that was
    told again takes the place of the first and of all that followed it: its dialogue had begun anew."""
    begun: dict[int, list[CompletedTurn]] = {}
    for buffer in rows:
        for row in read_group_batch(buffer).to_pylist():
            if row["group_id"] != group_id:
                continue
            turns = begun.setdefault(row["trajectory"], [])
            del turns[row["turn"] :]
            if len(turns) == row["turn"]:  # else some are missing, and it would not follow
                turns.append(_turn_of(row))
    return begun


def _turn_of(row: Mapping[str, object]) -> CompletedTurn:
    reply = row["user_reply"]
    completion = Completion(
        token_ids=np.asarray(row["completion_ids"], np.int32),
        logprobs=np.asarray(row["behavior_logprobs"], np.float32),
        policy_versions=np.asarray(row["policy_versions"], np.int32),
    )
    return CompletedTurn(
        completion=completion,
        user_reply=UserReply(**json.loads(reply)) if isinstance(reply, str) else None,
        feedback=str(row["feedback"]),
        seconds={name: float(str(row[name])) for name in SECONDS},
    )


class TurnPublisher:
    """Tells a feed which turns are over, in the background: those that end within a moment, or while a call
    is under way, go together. A call costs as much as a turn."""

    def __init__(
        self,
        note: Callable[[list[int], pa.Buffer], Awaitable[object]],
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        every_s: float = TELL_EVERY_S,
    ):
        """`note` is given the groups, turn by turn, and the turns; `spawn` runs what is under way; `every_s`
        seconds are what turns wait for each other."""
        self._note = note
        self._spawn = spawn
        self._every_s = every_s
        self._waiting: list[TurnUpdate] = []
        self._telling: asyncio.Task[None] | None = None

    def of(self, group_id: int) -> PublishTurn:
        """Tells the turns of one group."""

        def tell(trajectory: int, index: int, turn: Turn) -> None:
            self._waiting.append(TurnUpdate(group_id=group_id, trajectory=trajectory, index=index, turn=turn))
            if self._telling is None or self._telling.done():
                self._telling = self._spawn(self._tell())

        return tell

    async def _tell(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._every_s)
            told, self._waiting = self._waiting, []
            await self._note([one.group_id for one in told], to_rows(told))
