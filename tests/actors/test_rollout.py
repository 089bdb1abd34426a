"""Rollout: the ends of dialogues, failures as data, and the record of every turn."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from actors.engines.protocol import CompletionRequest, PolicyEngine, Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.group_summary import summarize
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout, rollout_group
from actors.scripts import Script
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory
from actors.trajectory_table import to_table
from learners.model.tiny_policy import make_tokenizer
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import Task, TaskKey
from simulators.user import WEB, SimulatorError, User, UserCall, UserReply
from simulators.users.rule_user import RuleUser
from tests.fakes import ScriptedUser, TextEngine, call_text, credited, make_key

KEY = make_key("function")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


def make_context(
    renderer: Renderer,
    engine_for: Callable[[Task, int], PolicyEngine],
    *,
    user: User | None = None,
    max_turns: int = 16,
    max_tokens: int = 4096,
) -> RolloutContext:
    return RolloutContext(
        engine_for=engine_for,
        user=user or RuleUser(),
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=32),
        gyms=GYMS,
        personas="plain",
        max_turns=max_turns,
        max_tokens=max_tokens,
    )


def ask(renderer: Renderer, content: str = "1 2 3 4") -> str:
    return call_text(renderer, Action(choice="action", content=content))


async def play(renderer: Renderer, texts: Sequence[str], *, key: TaskKey = KEY, **changes) -> Trajectory:
    engine = TextEngine(renderer, texts)
    return await rollout(key, make_context(renderer, lambda task, seed: engine, **changes), seed=0)


async def test_turns_keep_the_sampled_tokens(renderer: Renderer):
    texts = [ask(renderer), "thinking aloud " + ask(renderer, "0 0 0 0"), "I stop."]
    trajectory = await play(renderer, texts)
    assert [turn.text for turn in trajectory.turns] == texts
    for text, turn in zip(texts, trajectory.turns, strict=True):
        ids = [*renderer.encode(text), renderer.stop_id]
        assert turn.completion.token_ids.tolist() == ids
        assert turn.completion.logprobs.tolist() == [-1.0 - i for i in range(len(ids))]
        assert turn.completion.policy_versions.tolist() == [7] * len(ids)
    assert trajectory.turns[0].action == Action(choice="action", content="1 2 3 4")
    assert trajectory.simulator == "rules"
    assert (trajectory.system, trajectory.task_key) == (GYMS["function"].system, KEY)


async def test_text_without_a_tool_call_ends_the_dialogue_and_is_kept(renderer: Renderer):
    trajectory = await play(renderer, [ask(renderer), "Well."])
    assert trajectory.stop_reason is StopReason.NO_TOOL_CALL and not trajectory.stop_reason.failed
    last = trajectory.turns[-1]
    assert (last.action, last.feedback, last.reward, last.text) == (None, "", 0.0, "Well.")


async def test_the_turn_budget_ends_the_dialogue_after_its_last_turn(renderer: Renderer):
    trajectory = await play(renderer, [ask(renderer)] * 9, max_turns=3)
    assert trajectory.stop_reason is StopReason.MAX_TURNS and trajectory.stop_reason.truncated
    assert len(trajectory.turns) == 3 and "value" in trajectory.turns[-1].feedback


async def test_a_dialogue_ends_before_a_completion_could_overrun_the_context(renderer: Renderer):
    whole = await play(renderer, [ask(renderer)] * 9, max_turns=3)
    prompts = [len(turn.context_ids) for turn in whole.turns]
    completion = len(whole.turns[0].completion.token_ids)
    third_prompt = sum(prompts) + 2 * completion
    enough = await play(renderer, [ask(renderer)] * 9, max_turns=3, max_tokens=third_prompt + 32)
    short = await play(renderer, [ask(renderer)] * 9, max_turns=3, max_tokens=third_prompt + 31)
    assert (enough.stop_reason, len(enough.turns)) == (StopReason.MAX_TURNS, 3)
    assert (short.stop_reason, len(short.turns)) == (StopReason.MAX_TOKENS, 2)


async def test_the_environments_own_end_is_terminated(renderer: Renderer):
    trajectory = await play(renderer, [call_text(renderer, Action(choice="finish", content=""))])
    assert trajectory.stop_reason is StopReason.TERMINATED and len(trajectory.turns) == 1


async def test_a_user_that_fails_ends_the_trajectory_as_data(renderer: Renderer):
    user = ScriptedUser(fails_on=frozenset({1}), error=SimulatorError("replica lost"))
    trajectory = await play(renderer, [ask(renderer)] * 3, user=user)
    assert (trajectory.stop_reason, trajectory.error) == (StopReason.SIMULATOR_ERROR, "replica lost")
    assert len(trajectory.turns) == 1


async def test_an_engine_that_fails_ends_the_trajectory_as_data(renderer: Renderer):
    trajectory = await play(renderer, [ask(renderer)])
    assert (trajectory.stop_reason, trajectory.error) == (StopReason.ENGINE_ERROR, "nothing left to say")


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf])
async def test_a_logprob_that_is_not_finite_is_the_engines_failure(renderer: Renderer, logprob: float):
    """One of them would make a whole step not finite: it never reaches the learner."""
    engine = TextEngine(renderer, [ask(renderer)] * 3)
    complete = engine.complete

    async def complete_badly(request: CompletionRequest) -> Completion:
        completion = await complete(request)
        return replace(completion, logprobs=np.append(completion.logprobs[:-1], np.float32(logprob)))

    engine.complete = complete_badly
    trajectory = await rollout(KEY, make_context(renderer, lambda task, seed: engine), seed=0)
    assert trajectory.stop_reason is StopReason.ENGINE_ERROR and not trajectory.turns
    assert "logprob that is not finite" in trajectory.error


async def test_an_environment_that_raises_ends_the_trajectory_as_data(renderer: Renderer):
    user = ScriptedUser(fails_on=frozenset({0}), error=KeyError("terms"))
    trajectory = await play(renderer, [ask(renderer)], user=user)
    assert (trajectory.stop_reason, trajectory.error) == (StopReason.ERROR, "KeyError: 'terms'")


async def test_a_task_that_cannot_be_made_ends_the_trajectory_as_data(renderer: Renderer):
    trajectory = await play(renderer, [], key=make_key("no such gym"))
    assert trajectory.stop_reason is StopReason.ERROR and "no such gym" in trajectory.error
    assert (trajectory.turns, trajectory.opening) == ([], "")


async def test_a_turns_seconds_are_those_of_engine_queue_user_and_tools(renderer: Renderer):
    """The engine says that it computed for all but 20 of 60 ms; the user takes 50 ms."""
    engine = TextEngine(renderer, [ask(renderer), "Well."])
    complete = engine.complete

    async def complete_late(request: CompletionRequest) -> Completion:
        await asyncio.sleep(0.06)
        return replace(await complete(request), queue_s=0.02)

    async def reply_late(call: UserCall) -> UserReply:
        await asyncio.sleep(0.05)
        return replace(RuleUser().reply_sync(call), simulator=simulator)

    engine.complete = complete_late
    user, simulator = ScriptedUser(), "qwen"
    user.reply = reply_late
    trajectory = await rollout(KEY, make_context(renderer, lambda task, seed: engine, user=user), seed=0)
    asked, silent = trajectory.turns
    assert asked.policy_s >= 0.035 and asked.queue_s >= 0.02
    assert asked.user_s >= 0.045 and asked.tool_s >= 0.0
    assert (silent.user_s, silent.tool_s) == (0.0, 0.0)

    engine = TextEngine(renderer, [ask(renderer)])
    simulator = WEB
    trajectory = await rollout(KEY, make_context(renderer, lambda task, seed: engine, user=user), seed=0)
    (searched,) = trajectory.turns
    assert searched.user_s == 0.0 and searched.tool_s >= 0.045, "a search of the web is a tool's work"


async def test_no_failure_becomes_a_reward(renderer: Renderer):
    order = GroupOrder(group_id=0, task_key=KEY, group_size=3, seed=0)
    users = [ScriptedUser(fails_on=frozenset({index})) for index in range(3)]
    trajectories = [await play(renderer, [ask(renderer), "Well."], user=user) for user in users]
    table = with_rewards(to_table(order, trajectories), {"environment": 1.0, "turn": -0.1}, RewardContext())
    summary = summarize(order, credited(table), duration_s=0)
    assert [math.isnan(score) for score in summary.scores] == [True, False, False]
    assert [math.isnan(reward) for reward in summary.rewards] == [True, False, False]


async def test_a_lone_surrogate_is_no_tool_call_and_every_table_can_hold_it(renderer: Renderer):
    text = ask(renderer, "x").replace('"x"', '"\\ud83d"')
    trajectory = await play(renderer, [text])
    assert trajectory.stop_reason is StopReason.NO_TOOL_CALL
    order = GroupOrder(group_id=0, task_key=KEY, group_size=1, seed=0)
    assert to_table(order, [trajectory])["text"].to_pylist() == [text]


async def test_half_a_character_from_a_user_is_replaced_before_the_policy_reads_it(renderer: Renderer):
    class Cut(ScriptedUser):
        async def reply(self, call: UserCall) -> UserReply:
            return replace(await super().reply(call), text="cut \ud83d")

    trajectory = await play(renderer, [ask(renderer), "Well."], user=Cut())
    (turn, _) = trajectory.turns
    assert turn.user_reply is not None
    assert turn.user_reply.text == "cut \N{REPLACEMENT CHARACTER}"
    assert not trajectory.stop_reason.failed


async def test_every_trajectory_and_turn_of_a_group_has_its_own_seed_and_the_order_fixes_them(
    renderer: Renderer,
):
    async def seeds(order: GroupOrder) -> list[list[int]]:
        engines = {}

        def engine_for(task: Task, seed: int) -> PolicyEngine:
            engines[seed] = TextEngine(renderer, [ask(renderer), "Well."])
            return engines[seed]

        await rollout_group(order, make_context(renderer, engine_for))
        return [[request.seed for request in engine.requests] for engine in engines.values()]

    order = GroupOrder(group_id=4, task_key=KEY, group_size=4, seed=1)
    first = await seeds(order)
    flat = [seed for of_trajectory in first for seed in of_trajectory]
    assert [len(of_trajectory) for of_trajectory in first] == [2] * 4
    assert len(set(flat)) == 8 and all(0 <= seed < 2**31 for seed in flat)
    assert await seeds(order) == first
    for other in (
        GroupOrder(group_id=5, task_key=KEY, group_size=4, seed=1),
        GroupOrder(group_id=4, task_key=KEY, group_size=4, seed=2),
    ):
        assert not {seed for of_trajectory in await seeds(other) for seed in of_trajectory} & set(flat)


@pytest.mark.parametrize("gym", GYMS)
async def test_the_experts_rollout_scores_one_and_the_silent_ones_zero(renderer: Renderer, gym: str):
    scripts: dict[Script, float] = {"expert": 1.0, "silent": 0.0}
    for script, score in scripts.items():
        context = make_context(
            renderer,
            lambda task, seed, s=script: ScriptedEngine(
                s, gym=GYMS[task.key.gym], task=task, renderer=renderer, seed=seed
            ),
        )
        trajectory = await rollout(make_key(gym, index=2), context, seed=0)
        assert list(trajectory.gold) == list(
            GYMS[gym].gold_actions(GYMS[gym].make_task(make_key(gym, index=2)))
        )
        assert (max(turn.progress for turn in trajectory.turns) > 0) == (script == "expert")
        assert trajectory.stop_reason is StopReason.TERMINATED, trajectory.error
        assert sum(turn.reward for turn in trajectory.turns) == pytest.approx(score)
