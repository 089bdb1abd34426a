"""A dialogue that another actor has played in part is resumed as if it had never been interrupted."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest

from actors.engines.protocol import CompletionRequest, Sampling
from actors.partial_rollouts import TurnPublisher, TurnUpdate, encode_turns, read_partial_rollouts
from actors.renderer import Renderer
from actors.rollout import ResumePoint, RolloutContext, rollout, rollout_group
from actors.trajectory import Completion, GroupOrder, Trajectory, Turn
from actors.trajectory_table import SCHEMA, to_table
from learners.model.tiny_policy import make_tokenizer
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import TaskKey
from simulators.users.persona_style import persona_aware
from tests.fakes import ScriptedUser, call_text, make_key

CLOCKS = [name for name in SCHEMA.names if name.endswith("_s")]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


class SeededEngine:
    """Completions depend on prompt and seed alone, as those of a deterministic engine."""

    def __init__(self, renderer: Renderer):
        self._renderer = renderer
        self.num_requests = 0

    async def complete(self, request: CompletionRequest) -> Completion:
        self.num_requests += 1
        content = f"{(request.seed + len(request.token_ids)) % 7} 1 2 3"
        ids = [*self._renderer.encode(call_text(self._renderer, Action(choice="action", content=content)))]
        ids.append(self._renderer.stop_id)
        logprobs = [-0.1 * (1 + (request.seed + i) % 9) for i in range(len(ids))]
        return Completion.of(ids, logprobs=logprobs, policy_versions=[request.seed % 5] * len(ids))


def make_context(
    renderer: Renderer, engine: SeededEngine, user: ScriptedUser, *, max_turns: int
) -> RolloutContext:
    return RolloutContext(
        engine_for=lambda task, seed: engine,
        user=user,
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=48),
        gyms=GYMS,
        personas="varied",
        max_turns=max_turns,
        max_tokens=8192,
    )


def rows_of(key: TaskKey, trajectories: Sequence[Trajectory]) -> pa.Table:
    order = GroupOrder(group_id=3, task_key=key, group_size=len(trajectories), seed=0)
    return to_table(order, trajectories).drop_columns(CLOCKS)


@pytest.mark.parametrize("gym", sorted(GYMS))
@pytest.mark.parametrize("num_completed", [0, 1, 3])
async def test_a_resumed_group_equals_one_that_was_never_interrupted(
    renderer: Renderer, gym: str, num_completed: int
):
    key = make_key(gym, split="train")
    order = GroupOrder(group_id=3, task_key=key, group_size=2, seed=5)
    engine, user, published = SeededEngine(renderer), ScriptedUser(), list[TurnUpdate]()

    def publish(trajectory: int, index: int, turn: Turn) -> None:
        published.append(TurnUpdate(group_id=3, trajectory=trajectory, index=index, turn=turn))

    context = make_context(renderer, engine, user, max_turns=5)
    whole = await rollout_group(order, context, publish=publish)
    assert [len(one.turns) for one in whole] == [
        sum(one.trajectory == index for one in published) for index in range(2)
    ]

    over = [one for one in published if one.index < num_completed]
    partial = read_partial_rollouts([encode_turns(over)] if over else [], group_id=3)
    second, asked_again = SeededEngine(renderer), ScriptedUser()
    rest: list[tuple[int, int]] = []
    again = await rollout_group(
        order,
        make_context(renderer, second, asked_again, max_turns=5),
        partial_rollouts=partial,
        publish=lambda trajectory, index, turn: rest.append((trajectory, index)),
    )
    assert rows_of(key, again).equals(rows_of(key, whole))
    assert second.num_requests == engine.num_requests - len(over)
    num_answered = sum(one.turn.user_reply is not None for one in over)
    assert len(asked_again.calls) == len(user.calls) - num_answered
    assert len(rest) == len(published) - len(over) and all(index >= num_completed for _, index in rest)
    for mine, theirs in zip(again, whole, strict=True):
        assert mine.gauges == theirs.gauges
        for one, other in zip(mine.turns[:num_completed], theirs.turns[:num_completed], strict=True):
            assert (one.policy_s, one.queue_s, one.user_s) == (other.policy_s, other.queue_s, other.user_s)


async def test_a_dialogue_that_had_ended_is_only_replayed(renderer: Renderer):
    """Its group had not ended: other dialogues were still running."""
    key = make_key("function")
    task = GYMS["function"].make_task(key)

    class Expert(SeededEngine):
        def __init__(self) -> None:
            super().__init__(renderer)
            self.script = None

        async def complete(self, request: CompletionRequest) -> Completion:
            import random

            self.num_requests += 1
            last = request.messages[-1].content
            if self.script is None:
                self.script = persona_aware(GYMS["function"].expert(last, random.Random(0), 0.0))
                action = next(self.script)
            else:
                action = self.script.send(last)
            return Completion.scripted(renderer.completion_of(action))

    published: list[TurnUpdate] = []
    context = make_context(renderer, Expert(), ScriptedUser(), max_turns=16)
    resume = ResumePoint(
        publish=lambda i, turn: published.append(TurnUpdate(group_id=3, trajectory=0, index=i, turn=turn))
    )
    whole = await rollout(key, context, seed=1, resume=resume)
    assert str(whole.stop_reason) == "terminated" and task.key == key
    silent = Expert()
    completed = read_partial_rollouts([encode_turns(published)], group_id=3)[0]
    again = await rollout(
        key,
        make_context(renderer, silent, ScriptedUser(), max_turns=16),
        seed=1,
        resume=ResumePoint(completed=completed),
    )
    assert silent.num_requests == 0
    assert rows_of(key, [again]).equals(rows_of(key, [whole]))


async def test_a_dialogue_restarts_if_its_gym_replies_differently_now(renderer: Renderer):
    key, published = make_key("function"), list[TurnUpdate]()
    context = make_context(renderer, SeededEngine(renderer), ScriptedUser(), max_turns=3)
    resume = ResumePoint(
        publish=lambda i, turn: published.append(TurnUpdate(group_id=3, trajectory=0, index=i, turn=turn))
    )
    whole = await rollout(key, context, seed=1, resume=resume)
    first, *others = published
    changed = [replace(first, turn=replace(first.turn, feedback="something else")), *others]
    completed = read_partial_rollouts([encode_turns(changed)], group_id=3)[0]
    engine, again = SeededEngine(renderer), list[int]()
    played = await rollout(
        key,
        make_context(renderer, engine, ScriptedUser(), max_turns=3),
        seed=1,
        resume=ResumePoint(completed=completed, publish=lambda i, turn: again.append(i)),
    )
    assert engine.num_requests == 3 and again == [0, 1, 2]
    assert rows_of(key, [played]).equals(rows_of(key, [whole]))


async def test_turns_published_again_replace_the_first_and_turns_without_their_beginning_are_dropped(
    renderer: Renderer,
):
    published: list[TurnUpdate] = []
    context = make_context(renderer, SeededEngine(renderer), ScriptedUser(), max_turns=3)
    resume = ResumePoint(
        publish=lambda i, turn: published.append(TurnUpdate(group_id=3, trajectory=1, index=i, turn=turn))
    )
    await rollout(make_key("function"), context, seed=1, resume=resume)
    first, second, third = published
    other = replace(first, group_id=4)
    again = replace(first, turn=replace(first.turn, feedback="again"))
    partial = read_partial_rollouts(
        [encode_turns([first, other, second]), encode_turns([third, again])], group_id=3
    )
    assert [turn.feedback for turn in partial[1]] == ["again"]
    assert read_partial_rollouts([encode_turns([second, third])], group_id=3) == {1: []}


async def test_turns_that_complete_during_a_call_share_the_next():
    calls: list[list[int]] = []
    called, free = asyncio.Event(), asyncio.Event()

    async def send(group_ids: list[int], rows: pa.Buffer) -> None:
        calls.append(group_ids)
        called.set()
        await free.wait()

    turn = Turn(
        context_ids=Completion.scripted(()).token_ids,
        forked=True,
        completion=Completion.scripted([1]),
        text="",
        action=None,
        feedback="",
        reward=0.0,
    )
    async with asyncio.TaskGroup() as tasks:
        publisher = TurnPublisher(send, spawn=tasks.create_task, every_s=0.0)
        publisher.for_group(1)(0, 0, turn)
        await called.wait()
        for group_id in (1, 2, 3):
            publisher.for_group(group_id)(0, 1, turn)
        await asyncio.sleep(0.01)
        assert calls == [[1]]
        free.set()
    assert calls == [[1], [1, 2, 3]]
