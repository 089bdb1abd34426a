"""Stragglers: dialogues stopped at a time limit, dialogues that yield their slot, groups with surplus
dialogues."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from actors.dialogue_slots import DialogueSlots
from actors.early_stop import StopControl
from actors.engines.protocol import CompletionRequest, PolicyEngine, Sampling
from actors.group_summary import summarize
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout, rollout_group
from actors.trajectory import Completion, GroupOrder, StopReason
from actors.trajectory_table import to_table
from learners.drop_reasons import learner_drop_reasons
from learners.model.tiny_policy import make_tokenizer
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import Task
from simulators.user import UserCall, UserReply
from simulators.users.rule_user import RuleUser
from tests.fakes import TextEngine, call_text, credited, make_key

pytestmark = pytest.mark.medium

KEY = make_key("function")
FOREVER = 3600.0


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


@dataclass
class HangingEngine:
    """Completes `texts`, then hangs."""

    engine: TextEngine
    num_texts: int
    num_cancelled: int = 0
    hangs: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: CompletionRequest) -> Completion:
        if len(self.engine.requests) < self.num_texts:
            return await self.engine.complete(request)
        self.hangs.set()
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        raise AssertionError("no test waits so long")


class HangingUser:
    """Answers `num_replies` calls by the rules, then hangs."""

    def __init__(self, num_replies: int):
        self.num_replies = num_replies
        self.num_cancelled = 0

    async def reply(self, call: UserCall) -> UserReply:
        if self.num_replies:
            self.num_replies -= 1
            return RuleUser().reply_sync(call)
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        raise AssertionError("no test waits so long")


def make_context(
    renderer: Renderer, engine_for: Callable[[Task, int], PolicyEngine], **changes: Any
) -> RolloutContext:
    context = RolloutContext(
        engine_for=engine_for,
        user=RuleUser(),
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=32),
        gyms=GYMS,
        personas="plain",
        max_turns=16,
        max_tokens=4096,
    )
    return replace(context, **changes)


def ask(renderer: Renderer) -> str:
    return call_text(renderer, Action(choice="action", content="1 2 3 4"))


def hanging(renderer: Renderer, num_texts: int) -> HangingEngine:
    return HangingEngine(TextEngine(renderer, [ask(renderer)] * num_texts), num_texts)


def order_of(*, group_size: int, num_extra: int = 0) -> GroupOrder:
    return GroupOrder(group_id=0, task_key=KEY, group_size=group_size, seed=0, num_extra=num_extra)


async def test_at_the_time_limit_the_engines_call_is_cancelled_and_complete_turns_are_kept(
    renderer: Renderer,
):
    engine = hanging(renderer, 2)
    context = make_context(renderer, lambda task, seed: engine)
    trajectory = await rollout(KEY, context, seed=0, stop=StopControl(limit_s=1.0))
    assert (trajectory.stop_reason, len(trajectory.turns)) == (StopReason.TIME_LIMIT, 2)
    assert engine.num_cancelled == 1
    assert not asyncio.all_tasks() - {asyncio.current_task()}


async def test_at_the_time_limit_the_users_call_is_cancelled_and_its_turn_is_dropped(renderer: Renderer):
    user = HangingUser(num_replies=1)
    engine = TextEngine(renderer, [ask(renderer)] * 9)
    context = make_context(renderer, lambda task, seed: engine, user=user)
    trajectory = await rollout(KEY, context, seed=0, stop=StopControl(limit_s=1.0))
    assert trajectory.stop_reason is StopReason.TIME_LIMIT
    assert user.num_cancelled == 1
    assert len(engine.requests) == len(trajectory.turns) + 1


async def test_a_timeout_inside_the_dialogue_is_a_failure_and_no_early_stop(renderer: Renderer):
    class Impatient:
        async def complete(self, request: CompletionRequest) -> Completion:
            raise TimeoutError("own limit")

    context = make_context(renderer, lambda task, seed: Impatient())
    trajectory = await rollout(KEY, context, seed=0, stop=StopControl(limit_s=FOREVER))
    assert (trajectory.stop_reason, trajectory.error) == (StopReason.ERROR, "TimeoutError: own limit")


async def test_a_group_continues_without_the_dialogue_that_was_stopped(renderer: Renderer):
    engines = [TextEngine(renderer, ["Well."]), hanging(renderer, 1), TextEngine(renderer, ["Well."])]
    waiting = iter(engines)
    context = make_context(renderer, lambda task, seed: next(waiting), dialogue_timeout_s=0.2)
    order = order_of(group_size=3)
    table = with_rewards(
        to_table(order, await rollout_group(order, context)), {"environment": 1.0}, RewardContext()
    )
    summary = summarize(order, credited(table), duration_s=1.0)
    assert summary.stop_reasons[1] is StopReason.TIME_LIMIT
    assert np.isnan([summary.scores[1], summary.rewards[1]]).all()
    assert summary.usable == (0, 2)
    assert summary.drop_reasons == ["", "cut", ""]
    assert learner_drop_reasons(table, advantages=table["reward"].to_numpy()) == {(0, 1): "cut"}


async def test_a_group_with_enough_trajectories_stops_the_rest_and_keeps_their_rows(renderer: Renderer):
    slow = [hanging(renderer, 2), hanging(renderer, 0)]
    waiting = iter([slow[0], TextEngine(renderer, ["Well."]), slow[1], TextEngine(renderer, ["Well."])])
    context = make_context(renderer, lambda task, seed: next(waiting))
    order = order_of(group_size=2, num_extra=2)
    trajectories = await asyncio.wait_for(rollout_group(order, context), timeout=20)
    reasons = [trajectory.stop_reason for trajectory in trajectories]
    ended, surplus = StopReason.NO_TOOL_CALL, StopReason.SURPLUS
    assert reasons == [surplus, ended, surplus, ended]
    table = with_rewards(to_table(order, trajectories), {"environment": 1.0}, RewardContext())
    summary = summarize(order, credited(table), duration_s=1.0)
    assert sorted(set(table["trajectory"].to_pylist())) == [0, 1, 2, 3]
    assert summary.drop_reasons == ["surplus", "", "surplus", ""] and summary.group_drop_reason == "flat"
    assert learner_drop_reasons(table, advantages=table["reward"].to_numpy()) == {
        (0, 0): "surplus",
        (0, 2): "surplus",
    }
    assert [engine.num_cancelled for engine in slow] == [1, 1]


async def test_of_dialogues_that_end_in_the_same_moment_only_group_size_are_used(renderer: Renderer):
    context = make_context(renderer, lambda task, seed: TextEngine(renderer, ["Well."]))
    trajectories = await rollout_group(order_of(group_size=2, num_extra=3), context)
    reasons = [trajectory.stop_reason for trajectory in trajectories]
    assert reasons == [StopReason.NO_TOOL_CALL] * 2 + [StopReason.SURPLUS] * 3


async def test_failures_do_not_count_towards_the_group_size(renderer: Renderer):
    """Three of four fail; the last one is waited for, and the group has one trajectory."""
    waiting = iter(
        [TextEngine(renderer, []), TextEngine(renderer, ["Well."]), *[TextEngine(renderer, [])] * 2]
    )
    context = make_context(renderer, lambda task, seed: next(waiting))
    trajectories = await rollout_group(order_of(group_size=2, num_extra=2), context)
    reasons = [trajectory.stop_reason for trajectory in trajectories]
    assert reasons == [StopReason.ENGINE_ERROR, StopReason.NO_TOOL_CALL, *[StopReason.ENGINE_ERROR] * 2]


async def test_without_extra_dialogues_the_seeds_are_those_of_the_group_alone(renderer: Renderer):
    """Extra dialogues add seeds and change none."""

    async def seeds(num_extra: int) -> list[int]:
        found: list[int] = []

        def engine_for(task: Task, seed: int) -> PolicyEngine:
            found.append(seed)
            return TextEngine(renderer, ["Well."])

        await rollout_group(order_of(group_size=3, num_extra=num_extra), make_context(renderer, engine_for))
        return found

    assert (await seeds(2))[:3] == await seeds(0)


async def test_a_straggler_yields_its_slot_and_resumes_under_newer_weights(renderer: Renderer):
    """Slots for one group of two. Its slow dialogue waits for its user; the next group is played
    meanwhile."""
    slots, version = DialogueSlots(2), 0
    replied, waits = asyncio.Event(), asyncio.Event()

    class Engine:
        """Samples as the live version."""

        def __init__(self, texts: list[str]):
            self._engine = TextEngine(renderer, texts)

        async def complete(self, request: CompletionRequest) -> Completion:
            completion = await self._engine.complete(request)
            return replace(completion, policy_versions=[version] * len(completion.token_ids))

    class LateUser:
        async def reply(self, call: UserCall) -> UserReply:
            waits.set()
            await replied.wait()
            return RuleUser().reply_sync(call)

    def context_of(*texts: list[str], **changes: Any) -> RolloutContext:
        waiting = iter(texts)
        context = make_context(renderer, lambda task, seed: Engine(next(waiting)), slots=slots, **changes)
        return replace(context, dialogue_timeout_s=0.1, on_timeout="resume")

    order = order_of(group_size=2)
    slow = context_of([ask(renderer), "Well."], ["Well."], user=LateUser())
    await slots.acquire(2)
    first = asyncio.create_task(rollout_group(order, slow))
    await asyncio.wait_for(waits.wait(), timeout=20)
    await asyncio.wait_for(slots.acquire(2), timeout=20)  # both slots are free while the straggler waits
    version = 3
    replied.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.done()  # all slots are taken: it waits for one
    second = await rollout_group(order, context_of(["Well."], ["Well."]))
    assert [trajectory.stop_reason for trajectory in second] == [StopReason.NO_TOOL_CALL] * 2
    straggler, _ = await asyncio.wait_for(first, timeout=20)
    assert straggler.stop_reason is StopReason.NO_TOOL_CALL
    assert [set(turn.completion.policy_versions) for turn in straggler.turns] == [{0}, {3}]
    assert slots.num_free == 2
