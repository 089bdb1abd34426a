"""Laws of every gym: tasks, splits, expert, random and silent policies, retries, failures, any text.

`GYM_ACTIONS=100000 pytest tests/simulators/test_gyms.py -k no_text` plays that many generated actions of each
gym; a normal run plays a few hundred, a soak (`-m soak`) 20,000. `GYM_MODULES=my_gym pytest
tests/simulators/test_gyms.py` also tests a gym of your own.
"""

import asyncio
import importlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulators.env import GymEnv, TurnResult
from simulators.gym import Expert, Gym
from simulators.gym_plugins import known_gyms
from simulators.gyms import GYMS
from simulators.message import CHOICES, Action, parse_action
from simulators.persona import PersonaMix, draw_persona
from simulators.task import SPLITS, Split, Task, TaskKey
from simulators.user import SimulatorError, User, UserCall, UserReply
from simulators.users.persona_style import persona_aware
from simulators.users.rule_user import RuleUser
from tests.effort import examples
from tests.fakes import make_tasks
from tests.fakes import play_expert as play_expert_of
from tests.simulators import template_gym

ROOT = Path(__file__).resolve().parents[2]
NUM_ACTIONS = int(os.environ.get("GYM_ACTIONS", examples(400)))
"""Generated actions of each gym."""
TEXTS_PER_DIALOGUE = 20
LEVELS = (0, 1, 2)
"""Difficulties of every gym."""
MORE_LEVELS = {"function": (3,)}
WITH_SPARE_TURNS = ("intention", "persuade", "search", "tau", "turtle")
"""Gyms whose turn budget at level 2 leaves turns for questions that a persona puts off."""
OWN = [name for name in os.environ.get("GYM_MODULES", "").split(",") if name]
"""Plug-in modules to test, too."""
ALL: dict[str, Gym] = {template_gym.GYM.name: template_gym.GYM, **known_gyms(OWN)}
every_gym = pytest.mark.parametrize("gym", ALL.values(), ids=ALL)
every_level = pytest.mark.parametrize(
    ("gym", "difficulty"),
    [
        pytest.param(gym, level, id=f"{name}-{level}")
        for name, gym in ALL.items()
        for level in (*LEVELS, *MORE_LEVELS.get(name, ()))
    ],
)


def make_task(gym: Gym, index: int = 0, *, split: Split = "test", difficulty: int = 0, seed: int = 0) -> Task:
    return gym.make_task(TaskKey(gym=gym.name, split=split, index=index, seed=seed, difficulty=difficulty))


def rules_of(gym: Gym) -> RuleUser:
    return RuleUser({gym.name: gym})


def expert_of(gym: Gym, task: Task) -> Expert:
    return persona_aware(gym.expert(task.opening, random.Random(task.key.index), 0.0))


async def play_expert(
    gym: Gym, task: Task, *, user: User | None = None, mix: PersonaMix = "plain"
) -> list[tuple[Action, TurnResult]]:
    """The expert's actions and their results, until the dialogue ends or the expert has no action."""
    persona = draw_persona(mix, seed=task.key.task_id)
    env = GymEnv(gym, task=task, user=user or rules_of(gym), persona=persona)
    expert = expert_of(gym, task)
    action: Action | None = next(expert)
    taken: list[tuple[Action, TurnResult]] = []
    while action is not None:
        step = await env.step(str(action))
        taken.append((action, step))
        if step.terminated or step.truncated:
            break
        try:
            action = expert.send(step.feedback)
        except (StopIteration, ValueError, IndexError, KeyError, AttributeError):
            action = None  # a spoilt user's replies are useless to the expert
    return taken


async def play(gym: Gym, task: Task, texts: list[str], *, user: User | None = None) -> list[TurnResult]:
    env = GymEnv(gym, task=task, user=user or rules_of(gym))
    steps: list[TurnResult] = []
    for text in texts:
        steps.append(await env.step(text))
        if steps[-1].terminated or steps[-1].truncated:
            break
    return steps


def score_of(steps: list[TurnResult]) -> float:
    return sum(step.reward for step in steps)


class Spoilt:
    """The rule-based user, but with these facts in every reply."""

    def __init__(self, gym: Gym, facts: Any):
        self._rules, self._facts = rules_of(gym), facts

    async def reply(self, call: UserCall) -> UserReply:
        reply = self._rules.reply_sync(call)
        return UserReply(text=reply.text, facts=self._facts(reply.facts))


class Unsteady:
    """The rule-based user, but the first try of every call fails."""

    def __init__(self, gym: Gym) -> None:
        self._rules, self.calls = rules_of(gym), list[UserCall]()

    async def reply(self, call: UserCall) -> UserReply:
        self.calls.append(call)
        if len(self.calls) % 2:
            raise SimulatorError("no reply")
        return self._rules.reply_sync(call)


@pytest.mark.parametrize("name", GYMS)
def test_a_gym_is_one_file_of_its_name_and_one_line(name: str):
    assert GYMS[name].name == name
    assert importlib.import_module(f"simulators.gyms.{name}").GYM is GYMS[name]
    assert GYMS[name].system.strip() and GYMS[name].max_turns in (16, 30)


@every_level
def test_a_key_names_one_task_whose_scenario_is_json(gym: Gym, difficulty: int):
    for index in range(20):
        task = make_task(gym, index, difficulty=difficulty)
        assert task == make_task(gym, index, difficulty=difficulty) and task.opening.strip()
        assert json.loads(json.dumps(task.scenario)) == as_lists(task.scenario)


def as_lists(value: Any) -> Any:
    """JSON knows no tuples, and no keys but texts."""
    if isinstance(value, Mapping):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.medium
def test_a_task_is_the_same_in_every_process():
    code = (
        "import hashlib, json\n"
        "from simulators.gyms import GYMS\nfrom simulators.task import TaskKey\n"
        "for name, gym in GYMS.items():\n"
        "    key = TaskKey(gym=name, split='train', index=3, seed=1, difficulty=1)\n"
        "    task = gym.make_task(key)\n"
        "    print(hashlib.sha256((task.opening + json.dumps(task.scenario)).encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and len(printed.pop().split()) == len(GYMS)


@pytest.mark.medium
@every_level
def test_no_scenario_is_in_two_splits_for_any_seed(gym: Gym, difficulty: int):
    of_split = {
        split: {
            json.dumps(make_task(gym, index, split=split, seed=seed, difficulty=difficulty).scenario)
            for seed in range(4)
            for index in range(25)
        }
        for split in SPLITS
    }
    assert not of_split["train"] & of_split["test"]
    assert not of_split["train"] & of_split["validation"]
    assert not of_split["validation"] & of_split["test"]
    assert all(len(scenarios) > 10 for scenarios in of_split.values())


@pytest.mark.medium
@pytest.mark.parametrize("num_tasks", (60, pytest.param(600, marks=pytest.mark.soak)))
@every_level
async def test_the_expert_succeeds_and_random_and_silence_do_not(gym: Gym, difficulty: int, num_tasks: int):
    tasks = [make_task(gym, index, difficulty=difficulty) for index in range(num_tasks)]
    expert = [score_of([step for _, step in await play_expert(gym, task)]) for task in tasks]
    assert mean(expert) >= 0.95
    silent = [score_of(await play(gym, task, ["[finish]"])) for task in tasks]
    assert mean(silent) <= (0 if gym.name in GYMS else 0.1)
    tasks = [make_task(gym, index, difficulty=difficulty) for index in range(max(200, num_tasks))]
    rng = random.Random(0)
    drawn = [[str(gym.random_action(task, rng)) for _ in range(gym.max_turns)] for task in tasks]
    scores = [score_of(await play(gym, task, texts)) for task, texts in zip(tasks, drawn, strict=True)]
    assert mean(scores) <= 0.1


@pytest.mark.medium
@pytest.mark.parametrize("num_tasks", (40, pytest.param(200, marks=pytest.mark.soak)))
@pytest.mark.parametrize(
    ("gym", "difficulty"),
    [
        pytest.param(gym, level, id=f"{name}-{level}")
        for name, gym in ALL.items()
        for level in ((0, 1, 2) if name in WITH_SPARE_TURNS else (0, 1))
    ],
)
async def test_the_expert_succeeds_with_every_persona(gym: Gym, difficulty: int, num_tasks: int):
    tasks = [make_task(gym, index, difficulty=difficulty) for index in range(num_tasks)]
    scores = [score_of([step for _, step in await play_expert(gym, task, mix="varied")]) for task in tasks]
    assert mean(scores) >= 0.9


@pytest.mark.medium
@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize(
    ("name", "guess_rate", "most"),
    [("intention", 0.5, 0.75), ("persuade", 0.4, 0.75), ("search", 0.4, 0.6), ("turtle", 0.5, 0.6)],
)
async def test_guessing_instead_of_asking_costs(name: str, guess_rate: float, most: float, difficulty: int):
    tasks = make_tasks(name, num=100, difficulty=difficulty)
    scores = [score_of(await play_expert_of(task, guess_rate=guess_rate)) for task in tasks]
    assert mean(scores) <= most


@every_gym
async def test_saying_nothing_to_the_point_pays_nothing(gym: Gym):
    for index in range(20):
        task = make_task(gym, index)
        for text in ("", "hello", "[action] ", "[answer] ", "[search] ", "[action] What do you want?"):
            assert score_of(await play(gym, task, [text] * gym.max_turns)) == 0


@every_gym
def test_random_actions_are_well_formed(gym: Gym):
    rng, task = random.Random(0), make_task(gym)
    for _ in range(50):
        action = gym.random_action(task, rng)
        assert parse_action(str(action)) == Action(choice=action.choice, content=action.content.strip())


@every_gym
async def test_a_request_that_comes_twice_steps_once(gym: Gym):
    task = make_task(gym, difficulty=1)
    once = await play_expert(gym, task)
    env = GymEnv(gym, task=task, user=rules_of(gym))
    for number, (action, step) in enumerate(once):
        assert await env.step(str(action), request_id=f"r{number}") == step
        assert await env.step("[finish]", request_id=f"r{number}") == step
        assert await env.step(str(once[0][0]), request_id="r0") == once[0][1]


@every_gym
async def test_a_user_that_fails_leaves_everything_as_it_was(gym: Gym):
    task, user = make_task(gym, difficulty=1), Unsteady(gym)
    env = GymEnv(gym, task=task, user=user)
    for number, (action, step) in enumerate(await play_expert(gym, task)):
        if step.user_reply is not None:
            with pytest.raises(SimulatorError):
                await env.step(str(action), request_id=f"r{number}")
        assert await env.step(str(action), request_id=f"r{number}") == step
    assert user.calls[::2] == user.calls[1::2]


@every_gym
async def test_no_global_generator_is_touched(gym: Gym):
    def states() -> tuple[object, list[int]]:
        return random.getstate(), list(np.random.get_state()[1])  # type: ignore[index]

    before = states()
    for index in range(5):
        task = make_task(gym, index)
        gym.random_action(task, random.Random(0))
        await play_expert(gym, task, mix="varied")
    assert before == states()


SPOILT_FACTS: dict[str, Any] = {
    "none": lambda facts: {},
    "foreign": lambda facts: {"nonsense": 1},
    "null": lambda facts: dict.fromkeys(facts),
    "lists": lambda facts: {key: [[]] for key in facts},
    "unknown": lambda facts: dict.fromkeys(facts, "no such thing"),
    "huge": lambda facts: dict.fromkeys(facts, 10**9),
}


@pytest.mark.parametrize("kind", SPOILT_FACTS)
@every_gym
async def test_a_reply_that_means_nothing_is_shown_and_pays_nothing(gym: Gym, kind: str):
    for index in range(10):
        task = make_task(gym, index, difficulty=1)
        for _, step in await play_expert(gym, task, user=Spoilt(gym, SPOILT_FACTS[kind])):
            if step.user_reply is not None:
                assert step.reward == 0
                assert kind != "none" or step.user_reply.text in step.feedback


def texts_for(gym: Gym, task: Task) -> st.SearchStrategy[str]:
    """Any text, and texts made of this gym's own dialogues: whole, cut, joined, with any tag."""
    rng = random.Random(0)
    dialogue = asyncio.run(play_expert(gym, task))
    said = [action.content for action, _ in dialogue]
    said += [gym.random_action(task, rng).content for _ in range(10)]
    heard = [task.opening, gym.system, *(step.feedback for _, step in dialogue)]
    words = sorted({word.strip(";:.,?\"'") for text in (*heard, *said) for word in text.split()})
    token = st.one_of(
        st.sampled_from(words), st.integers().map(str), st.sampled_from([*said, "test", "\ud800"])
    )
    content = st.one_of(
        st.sampled_from(said),
        st.sampled_from([text[:at] for text in said for at in (1, len(text) // 2, len(text) - 1)]),
        st.lists(token, max_size=8).map(" ".join),
        st.dictionaries(st.sampled_from(["name", "arguments"]), st.one_of(token, st.integers())).map(
            json.dumps
        ),
        st.text(max_size=30),
    )
    tagged = st.builds(lambda choice, text: f"[{choice}] {text}", st.sampled_from(CHOICES[:3]), content)
    return st.one_of(tagged, tagged, tagged, st.text(max_size=20), st.just("[finish]"))


@pytest.mark.parametrize("num_actions", (NUM_ACTIONS, pytest.param(20_000, marks=pytest.mark.soak)))
@pytest.mark.parametrize("difficulty", (0, 3), ids=("lowest", "highest"))
@every_gym
def test_no_text_breaks_a_gym_and_its_pay_is_within_bounds(gym: Gym, difficulty: int, num_actions: int):
    texts_of_task = texts_for(gym, make_task(gym, difficulty=difficulty))
    dialogues = st.lists(texts_of_task, min_size=TEXTS_PER_DIALOGUE, max_size=TEXTS_PER_DIALOGUE)
    if gym.max_turns > TEXTS_PER_DIALOGUE:
        dialogues = st.tuples(dialogues, dialogues).map(lambda pair: [*pair[0], *pair[1]])

    @settings(
        max_examples=max(1, num_actions // (2 * TEXTS_PER_DIALOGUE)),
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
        database=None,
    )
    @given(index=st.integers(0, 50), texts=dialogues)
    def holds(index: int, texts: list[str]) -> None:
        steps = asyncio.run(play(gym, make_task(gym, index, difficulty=difficulty), texts))
        assert len(steps) <= gym.max_turns and (steps[-1].terminated or steps[-1].truncated)
        assert all(math.isfinite(step.reward) and 0 <= step.reward <= 1 for step in steps)
        assert score_of(steps) <= 1 + 1e-9

    holds()
