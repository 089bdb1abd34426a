"""Fakes and short ways that the tests of several rooms share: scripted engines and users, dialogues without
tokens."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from actors.engines.protocol import CompletionRequest, EngineError
from actors.group_summary import CreditedTable
from actors.renderer import Renderer
from actors.trajectory import Completion, GroupSummary, StopReason
from learners.advantages.group_advantages import credit_group
from learners.config import LearnerConfig
from simulators.env import GymEnv, TurnResult
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.persona import PLAIN, Persona
from simulators.task import Split, Task, TaskKey
from simulators.user import SimulatorError, User, UserCall, UserReply
from simulators.users.persona_style import persona_aware
from simulators.users.rule_user import RuleUser


def make_key(
    gym: str = "function", *, split: Split = "test", index: int = 0, seed: int = 0, difficulty: int = 0
) -> TaskKey:
    return TaskKey(gym=gym, split=split, index=index, seed=seed, difficulty=difficulty)


def make_tasks(
    gym: str, *, num: int, split: Split = "test", difficulty: int = 0, seed: int = 0
) -> list[Task]:
    """The first `num` tasks of a split."""
    keys = (make_key(gym, split=split, index=i, difficulty=difficulty, seed=seed) for i in range(num))
    return [GYMS[gym].make_task(key) for key in keys]


async def play(
    task: Task,
    texts: Sequence[str],
    *,
    user: User | None = None,
    persona: Persona = PLAIN,
    max_turns: int | None = None,
) -> list[TurnResult]:
    """Executes `[choice] content` texts until they or the episode end."""
    env = GymEnv(GYMS[task.key.gym], task=task, user=user or RuleUser(), persona=persona, max_turns=max_turns)
    steps: list[TurnResult] = []
    for text in texts:
        steps.append(await env.step(text))
        if steps[-1].terminated or steps[-1].truncated:
            break
    return steps


async def feedback_of(task: Task, *texts: str) -> str:
    """The feedback to the last of these texts."""
    steps = await play(task, texts)
    assert len(steps) == len(texts), "the episode ended early"
    return steps[-1].feedback


async def play_expert(task: Task, *, persona: Persona = PLAIN, guess_rate: float = 0.0) -> list[TurnResult]:
    """The gym's expert from the opening until the episode ends or it has nothing left to do."""
    gym: Gym = GYMS[task.key.gym]
    env = GymEnv(gym, task=task, user=RuleUser(), persona=persona)
    expert = persona_aware(gym.expert(task.opening, random.Random(task.key.index), guess_rate))
    action = next(expert, None)
    steps: list[TurnResult] = []
    while action is not None:
        steps.append(await env.step(str(action)))
        if steps[-1].terminated or steps[-1].truncated:
            break
        try:
            action = expert.send(steps[-1].feedback)
        except StopIteration:
            break
    return steps


async def play_random(task: Task) -> list[TurnResult]:
    """Well-formed actions that ignore the dialogue."""
    rng = random.Random(task.key.index)
    return await play(task, [str(GYMS[task.key.gym].random_action(task, rng)) for _ in range(16)])


def score_of(steps: Sequence[TurnResult]) -> float:
    return sum(step.reward for step in steps)


@dataclass
class ScriptedUser:
    """Answers by the rules, but fails on the calls (counted from 0) named in `fails_on`."""

    fails_on: frozenset[int] = frozenset()
    error: Exception = field(default_factory=lambda: SimulatorError("no reply"))
    calls: list[UserCall] = field(default_factory=list)

    async def reply(self, call: UserCall) -> UserReply:
        self.calls.append(call)
        if len(self.calls) - 1 in self.fails_on:
            raise self.error
        return RuleUser().reply_sync(call)


class TextEngine:
    """Says these texts in turn, in the renderer's tokens, with logprobs -1, -2, ... and version 7; then
    fails."""

    def __init__(self, renderer: Renderer, texts: Sequence[str], *, stops: bool = True):
        self._renderer = renderer
        self._texts: Iterator[str] = iter(texts)
        self._stop = [renderer.stop_id] if stops else []
        self.requests: list[CompletionRequest] = []

    async def complete(self, request: CompletionRequest) -> Completion:
        self.requests.append(request)
        text = next(self._texts, None)
        if text is None:
            raise EngineError("nothing left to say")
        ids = [*self._renderer.encode(text), *self._stop]
        logprobs = [-1.0 - i for i in range(len(ids))]
        return Completion.of(ids, logprobs=logprobs, policy_versions=[7] * len(ids))


def call_text(renderer: Renderer, action: Action) -> str:
    """The text of a canonical tool call."""
    return renderer.decode(renderer.completion_of(action))


def credited(table: pa.Table) -> CreditedTable:
    """A group's scored table, as the default configuration credits it."""
    return credit_group(table, True, credit_of=LearnerConfig().credit_of)


def credit_turns(
    rewards: Sequence[float], *, stop_reasons: Sequence[StopReason], is_empty: bool = False
) -> CreditedTable:
    """A group of dialogues of one turn with these rewards; only the columns that credit needs."""
    size = len(rewards)
    columns = {
        "group_id": [0] * size,
        "trajectory": range(size),
        "gym": ["function"] * size,
        "stop_reason": [str(reason) for reason in stop_reasons],
        "failed": [reason.failed for reason in stop_reasons],
        "completion_ids": pa.array([[] if is_empty else [1]] * size, pa.list_(pa.int32())),
        "reward": pa.array(rewards, pa.float64()),
    }
    return credited(pa.table(columns))


def make_summary(
    scores: Sequence[float],
    *,
    gym: str = "function",
    stop_reasons: Sequence[StopReason] | None = None,
    num_turns: Sequence[int] | None = None,
    num_policy_tokens: int = 0,
    versions: tuple[int, int] = (0, 0),
    spans: Sequence[int] | None = None,
    duration_s: float = 0.0,
    policy_s: float = 0.0,
    queue_s: float = 0.0,
    user_s: float = 0.0,
    tool_s: float = 0.0,
    reward_s: float = 0.0,
    user_retries: int = 0,
    user_concurrency: float = 0.0,
    is_empty: bool = False,
) -> GroupSummary:
    """A summary of dialogues of one turn whose rewards are their scores; `is_empty`: without a token.
    `versions` is (oldest, newest)."""
    stop_reasons = stop_reasons or [StopReason.TERMINATED] * len(scores)
    found = credit_turns(scores, stop_reasons=stop_reasons, is_empty=is_empty)
    return GroupSummary(
        group_id=0,
        task_key=make_key(gym),
        rewards=scores,
        scores=scores,
        num_turns=num_turns or [1] * len(scores),
        stop_reasons=stop_reasons,
        drop_reasons=found.drop_reasons,
        group_drop_reason=found.group_drop_reason,
        num_policy_tokens=num_policy_tokens,
        oldest_version=versions[0],
        newest_version=versions[1],
        version_spans=spans or [versions[1] - versions[0]] * len(scores),
        duration_s=duration_s,
        policy_s=policy_s,
        queue_s=queue_s,
        user_s=user_s,
        tool_s=tool_s,
        reward_s=reward_s,
        user_retries=user_retries,
        user_concurrency=user_concurrency,
        simulator="rules",
        persona="plain",
    )
