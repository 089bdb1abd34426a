"""Gym plug-ins: found where `import` finds them; faults are reported in one line."""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulators import make_env
from simulators.gym import ActionOutcome, Expert, Gym
from simulators.gym_check import check_gym
from simulators.gym_plugins import known_gyms, module_path
from simulators.gymnasium_env import GymnasiumEnv
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import Task, TaskKey
from simulators.user import UserCall, UserReply
from tests.simulators import template_gym
from tests.simulators.template_gym import GYM

TEMPLATE = Path(template_gym.__file__).read_text()


@pytest.fixture(autouse=True)
def here(folder_of_ones_own: Path) -> Path:
    return folder_of_ones_own


def test_a_module_of_the_working_folder_adds_its_gym_to_the_built_in_ones(here: Path):
    (here / "my_gym.py").write_text(TEMPLATE)
    gyms = known_gyms(["my_gym"])
    assert list(gyms) == [*GYMS, "echo"] and all(gyms[name] is GYMS[name] for name in GYMS)
    task = gyms["echo"].make_task(TaskKey(gym="echo", split="test", index=3, seed=0, difficulty=0))
    assert task == GYM.make_task(task.key)
    assert module_path("my_gym") == here.resolve() / "my_gym.py"
    assert known_gyms() == GYMS


def test_a_module_may_be_part_of_a_package(here: Path):
    (here / "people").mkdir()
    (here / "people" / "__init__.py").touch()
    (here / "people" / "echo.py").write_text(TEMPLATE)
    assert "echo" in known_gyms(["people.echo"])
    assert module_path("people.echo") == here.resolve() / "people"


def test_a_file_here_does_not_stand_before_what_is_installed(here: Path):
    (here / "colorsys.py").write_text(TEMPLATE)
    sys.modules.pop("colorsys", None)
    with pytest.raises(ValueError, match="colorsys: has no gym"):
        known_gyms(["colorsys"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "my_gym: no such module: give the name of a Python file in"),
        ("x = 1", r"my_gym: has no gym: write GYM = Gym\(...\) at its foot"),
        ("GYM = 'echo'", "my_gym: has no gym"),
        ("import nowhere_at_all", "my_gym: imports 'nowhere_at_all', which is not installed"),
        ("1 / 0", "my_gym: cannot be imported: ZeroDivisionError: division by zero"),
        ("def", "my_gym: cannot be imported: SyntaxError: "),
        (TEMPLATE.replace('name="echo"', 'name="travel"'), "my_gym: the name 'travel' is taken"),
        (TEMPLATE.replace('name="echo"', 'name="mean"'), "my_gym: the name 'mean' is taken"),
        (TEMPLATE.replace('name="echo"', 'name="Echo"'), "my_gym: name='Echo': a gym's name stands in keys"),
        (TEMPLATE.replace('name="echo"', 'name="my-echo"'), "my_gym: name='my-echo'"),
    ],
)
def test_a_module_that_brings_no_gym_is_one_line(here: Path, text: str | None, says: str):
    if text is not None:
        (here / "my_gym.py").write_text(text)
    with pytest.raises(ValueError, match=says) as refused:
        known_gyms(["my_gym"])
    assert "\n" not in str(refused.value)


def test_two_gyms_of_one_name_are_told_apart(here: Path):
    for name in ("first", "second"):
        (here / f"{name}.py").write_text(TEMPLATE)
    with pytest.raises(ValueError, match="second: the name 'echo' is taken"):
        known_gyms(["first", "second"])


@pytest.mark.medium
@pytest.mark.parametrize("difficulty", (0, 2))
@pytest.mark.parametrize("gym", [*GYMS.values(), GYM], ids=[*GYMS, "echo"])
def test_a_gym_that_keeps_the_laws_passes(gym: Gym, difficulty: int):
    check_gym(gym, difficulty=difficulty)


def restless(key: TaskKey) -> Task:
    return Task(key=key, opening="Hello.", scenario={"number": random.random()})


def of_any_split(key: TaskKey) -> Task:
    return Task(key=key, opening="I think of 3 words.", scenario={"words": ["amber"] * 3})


def of_another_key(key: TaskKey) -> Task:
    return GYM.make_task(replace(key, index=0))


def not_json(key: TaskKey) -> Task:
    return replace(GYM.make_task(key), scenario={"words": {"amber"}})


def raises(task: Task, state: Any, action: Action, reply: UserReply | None) -> ActionOutcome:
    return ActionOutcome(state=state, feedback=action.content.split()[1], score=0.0)


def pays_twice(task: Task, state: Any, action: Action, reply: UserReply | None) -> ActionOutcome:
    outcome = GYM.apply_action(task, state, action, reply)
    return replace(outcome, score=2 * outcome.score)


def deaf(call: UserCall, rng: random.Random) -> UserReply:
    return UserReply(text=call.scenario["name"])


def shy(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    yield Action(choice="action", content="Word 1?")


@pytest.mark.parametrize(
    ("part", "broken", "says"),
    [
        ("make_task", restless, "echo: a key must name one task"),
        ("make_task", of_another_key, "echo: a key must name one task"),
        ("make_task", of_any_split, "echo: train and test share the scenario"),
        ("make_task", not_json, "echo: a scenario travels as JSON"),
        ("apply_action", raises, r"echo: IndexError after '\[action\] ': .* \(test_gym_plugins.py:\d+\)"),
        ("apply_action", pays_twice, "echo: a dialogue paid 2 with its expert"),
        ("rule_based_reply", deaf, r"echo: KeyError after '\[action\] ': 'name' \(test_gym_plugins.py:\d+\)"),
        ("expert", shy, "echo: the expert scores 0.00 and silence 0.00"),
    ],
)
def test_a_gym_that_breaks_a_law_is_one_line(part: str, broken: Callable[..., Any], says: str):
    with pytest.raises(ValueError, match=says) as refused:
        check_gym(replace(GYM, **{part: broken}), difficulty=0)
    assert "\n" not in str(refused.value)


async def test_an_environment_is_made_of_a_gym_as_of_a_name():
    env = make_env(GYM, index=3)
    words = GYM.make_task(TaskKey(gym="echo", split="test", index=3, seed=0, difficulty=0)).scenario["words"]
    assert (await env.step("[action] Word 1?")).feedback == f"It is {words[0]}."
    assert (await env.step(f"[answer] {' '.join(words)}")).reward == 1.0


def test_gymnasium_plays_a_plug_in_gym():
    env = GymnasiumEnv(gym=GYM)
    observation, _ = env.reset(options={"index": 3})
    assert observation.endswith("I think of 3 words.")
