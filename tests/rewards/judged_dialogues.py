"""Hand-made groups for the tests of rewards."""

import json
from collections.abc import Sequence

import pyarrow as pa

from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn, as_ids
from actors.trajectory_table import to_table
from simulators.message import Action
from tests.fakes import make_key

KEY = make_key()


def make_turn(
    *,
    action: Action | None = None,
    text: str = "",
    feedback: str = "",
    reward: float = 0.0,
    progress: float = 0.0,
    num_tokens: int = 1,
) -> Turn:
    return Turn(
        context_ids=as_ids([1]),
        forked=False,
        completion=Completion.of(
            [2] * num_tokens, logprobs=[-1.0] * num_tokens, policy_versions=[0] * num_tokens
        ),
        text=text,
        action=action,
        feedback=feedback,
        reward=reward,
        progress=progress,
    )


def make_trajectory(
    turns: Sequence[Turn],
    *,
    stop_reason: StopReason = StopReason.TERMINATED,
    gold: Sequence[Action] = (),
    error: str = "",
) -> Trajectory:
    return Trajectory(
        task_key=KEY,
        system="Find the card.",
        opening="Which one?",
        turns=turns,
        stop_reason=stop_reason,
        gold=gold,
        error=error,
    )


def make_table(trajectories: Sequence[Trajectory], *, group_id: int = 0) -> pa.Table:
    order = GroupOrder(group_id=group_id, task_key=KEY, group_size=len(trajectories), seed=0)
    return to_table(order, trajectories)


def call_of(name: str, **arguments: object) -> Action:
    """A tool call as the policy of a gym with tools makes it."""
    return Action(choice="answer", content=json.dumps({"name": name, "arguments": arguments}))


def say(content: str) -> Action:
    return Action(choice="action", content=content)


def answer(content: str) -> Action:
    return Action(choice="answer", content=content)
