"""Helpers of the published rules' tests: users with scripted verdicts, dialogues, shipped data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from simulators.env import GymEnv, TurnResult
from simulators.gym import Gym
from simulators.published import PUBLISHED
from simulators.task import Task
from simulators.user import User, UserCall, UserReply
from simulators.users.rule_user import RuleUser

USERRL = Path(__file__).parents[4] / "shared" / "data" / "userrl"
needs_data = pytest.mark.skipif(not USERRL.is_dir(), reason="the published data are not here")


class Oracle:
    """Gives these verdicts in turn, or what one function makes of each call."""

    def __init__(self, verdicts: Sequence[Mapping[str, Any]] | Callable[[UserCall], Mapping[str, Any]]):
        self._verdicts = verdicts
        self.calls: list[UserCall] = []

    async def reply(self, call: UserCall) -> UserReply:
        self.calls.append(call)
        verdicts = self._verdicts
        facts = verdicts(call) if callable(verdicts) else verdicts[len(self.calls) - 1]
        return UserReply(text=str(facts.get("text", "Well.")), facts=facts)


async def play(
    task: Task, texts: Sequence[str], *, user: User | None = None, gym: Gym | None = None
) -> list[TurnResult]:
    """Executes texts under the published rules until they or the episode end; by default with the rules'
    own user."""
    env = GymEnv(gym or PUBLISHED[task.key.gym], task=task, user=user or RuleUser(PUBLISHED))
    steps: list[TurnResult] = []
    for text in texts:
        steps.append(await env.step(text))
        if steps[-1].terminated or steps[-1].truncated:
            break
    return steps


def rewards(steps: Sequence[TurnResult]) -> list[float]:
    return [step.reward for step in steps]
