"""A dialogue that somebody else had begun goes on as if nobody had interrupted it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest

from actors.engines.protocol import CompletionRequest, Sampling
from actors.partial_rollouts import TurnPublisher, TurnUpdate, read_partial_rollouts, to_rows
from actors.renderer import Renderer
from actors.rollout import ResumePoint, RolloutContext, rollout, rollout_group
from actors.trajectory import Completion, GroupOrder, Trajectory, Turn
from actors.trajectory_table import SCHEMA, to_table
from learners.model.tiny_policy import make_tokenizer
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import TaskKey
from simulators.users.persona_style import attentive
from tests.fakes import ScriptedUser, call_text, make_key

CLOCKS = [name for name in SCHEMA.names if name.endswith("_s")]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


class SeededEngine:
    """Says what a request alone decides: prompt and seed, as a deterministic engine does."""

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


def make_setting(
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
@pytest.mark.parametrize("num_begun", [0, 1, 3])
async def test_what_goes_on_is_what_was_never_interrupted(renderer: Renderer, gym: str, num_begun: int):
    key = make_key(gym, split="train")
    order = GroupOrder(group_id=3, task_key=key, group_size=2, seed=5)
    engine, user, told = SeededEngine(renderer), ScriptedUser(), list[TurnUpdate]()

    def note(trajectory: int, index: int, turn: Turn) -> None:
        told.append(TurnUpdate(group_id=3, trajectory=trajectory, index=index, turn=turn))

    setting = make_setting(renderer, engine, user, max_turns=5)
    whole = await rollout_group(order, setting, tell=note)
    assert [len(one.turns) for one in whole] == [
        sum(one.trajectory == index for one in told) for index in range(2)
    ]

    over = [one for one in told if one.index < num_begun]
    begun = read_partial_rollouts([to_rows(over)] if over else [], group_id=3)
    second, asked_again = SeededEngine(renderer), ScriptedUser()
    rest: list[tuple[int, int]] = []
    again = await rollout_group(
        order,
        make_setting(renderer, second, asked_again, max_turns=5),
        begun=begun,
        tell=lambda trajectory, index, turn: rest.append((trajectory, index)),
    )
    assert rows_of(key, again).equals(rows_of(key, whole))
    assert second.num_requests == engine.num_requests - len(over)
    num_answered = sum(one.turn.user_reply is not None for one in over)
    assert len(asked_again.calls) == len(user.calls) - num_answered
    assert len(rest) == len(told) - len(over) and all(index >= num_begun for _, index in rest)
    for mine, theirs in zip(again, whole, strict=True):
        assert mine.gauges == theirs.gauges
        for one, other in zip(mine.turns[:num_begun], theirs.turns[:num_begun], strict=True):
            assert (one.policy_s, one.queue_s, one.user_s) == (other.policy_s, other.queue_s, other.user_s)


async def test_a_dialogue_that_was_solved_is_not_played_again(renderer: Renderer):
    """Its group was not over: others were still talking."""
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
                self.script = attentive(GYMS["function"].expert(last, random.Random(0), 0.0))
                action = next(self.script)
            else:
                action = self.script.send(last)
            return Completion.scripted(renderer.completion_of(action))

    told: list[TurnUpdate] = []
    setting = make_setting(renderer, Expert(), ScriptedUser(), max_turns=16)
    course = ResumePoint(
        tell=lambda i, turn: told.append(TurnUpdate(group_id=3, trajectory=0, index=i, turn=turn))
    )
    whole = await rollout(key, setting, seed=1, course=course)
    assert str(whole.stop_reason) == "terminated" and task.key == key
    silent = Expert()
    begun = read_partial_rollouts([to_rows(told)], group_id=3)[0]
    again = await rollout(
        key,
        make_setting(renderer, silent, ScriptedUser(), max_turns=16),
        seed=1,
        course=ResumePoint(begun=begun),
    )
    assert silent.num_requests == 0
    assert rows_of(key, [again]).equals(rows_of(key, [whole]))


async def test_a_gym_that_answers_otherwise_now_begins_anew(renderer: Renderer):
    key, told = make_key("function"), list[TurnUpdate]()
    setting = make_setting(renderer, SeededEngine(renderer), ScriptedUser(), max_turns=3)
    course = ResumePoint(
        tell=lambda i, turn: told.append(TurnUpdate(group_id=3, trajectory=0, index=i, turn=turn))
    )
    whole = await rollout(key, setting, seed=1, course=course)
    changed = [replace(told[0], turn=replace(told[0].turn, feedback="something else")), *told[1:]]
    begun = read_partial_rollouts([to_rows(changed)], group_id=3)[0]
    engine, again = SeededEngine(renderer), list[int]()
    played = await rollout(
        key,
        make_setting(renderer, engine, ScriptedUser(), max_turns=3),
        seed=1,
        course=ResumePoint(begun=begun, tell=lambda i, turn: again.append(i)),
    )
    assert engine.num_requests == 3 and again == [0, 1, 2]
    assert rows_of(key, [played]).equals(rows_of(key, [whole]))


async def test_turns_told_again_replace_the_first_and_what_misses_its_beginning_counts_for_nothing(
    renderer: Renderer,
):
    told: list[TurnUpdate] = []
    setting = make_setting(renderer, SeededEngine(renderer), ScriptedUser(), max_turns=3)
    course = ResumePoint(
        tell=lambda i, turn: told.append(TurnUpdate(group_id=3, trajectory=1, index=i, turn=turn))
    )
    await rollout(make_key("function"), setting, seed=1, course=course)
    first, second, third = told
    other = replace(first, group_id=4)
    anew = replace(first, turn=replace(first.turn, feedback="anew"))
    begun = read_partial_rollouts([to_rows([first, other, second]), to_rows([third, anew])], group_id=3)
    assert [turn.feedback for turn in begun[1]] == ["anew"]
    assert read_partial_rollouts([to_rows([second, third])], group_id=3) == {1: []}


async def test_turns_that_end_during_a_call_go_together_in_the_next():
    calls: list[list[int]] = []
    called, free = asyncio.Event(), asyncio.Event()

    async def note(group_ids: list[int], rows: pa.Buffer) -> None:
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
        teller = TurnPublisher(note, spawn=tasks.create_task, every_s=0.0)
        teller.of(1)(0, 0, turn)
        await called.wait()
        for group_id in (1, 2, 3):
            teller.of(group_id)(0, 1, turn)
        await asyncio.sleep(0.01)
        assert calls == [[1]]
        free.set()
    assert calls == [[1], [1, 2, 3]]
