"""The factory of environments: options have their effect; unknown names are refused in one line."""

import asyncio
import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

import simulators.env_factory
from simulators import make_env
from simulators.env_factory import find_gym, load_tasks, open_gyms
from simulators.gym import MAX_TURNS, Gym
from simulators.gyms import GYMS
from simulators.persona import Persona
from simulators.task import Task, TaskKey
from simulators.user import UserCall, UserReply
from tests.fakes import make_key, make_tasks
from tests.simulators import template_gym

ROOT = Path(__file__).resolve().parents[2]


class Parrot:
    """A user who keeps every call and gives the question back."""

    def __init__(self) -> None:
        self.calls: list[UserCall] = []

    async def reply(self, call: UserCall) -> UserReply:
        self.calls.append(call)
        return UserReply(text=call.question)


def load_words(path: Path) -> list[Task]:
    """A loader as a gym has one: a JSON list of word lists."""
    rows = json.loads(path.read_text())
    return [
        Task(
            key=make_key("echo", index=i),
            opening=f"I think of {len(words)} words.",
            scenario={"words": words},
        )
        for i, words in enumerate(rows)
    ]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Gym:
    """A registered gym that has published data."""
    gym = replace(template_gym.GYM, load_tasks=load_words)
    monkeypatch.setitem(GYMS, "echo", gym)
    return gym


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.json"
    path.write_text('[["amber", "birch"], ["cedar", "delta"], ["ember", "fjord"]]')
    return path


async def test_the_example_of_the_docstring_runs():
    assert simulators.env_factory.__doc__ is not None
    example = textwrap.dedent(simulators.env_factory.__doc__.partition("\n\n")[2])
    assert 10 <= len(example.strip().splitlines()) <= 13
    await asyncio.to_thread(exec, example, {})


def test_the_pages_show_what_is_tested():
    assert simulators.env_factory.__doc__ is not None
    example = textwrap.dedent(simulators.env_factory.__doc__.partition("\n\n")[2]).strip()
    page = (ROOT / "docs" / "gyms.md").read_text().replace("\n\n\n", "\n\n")  # as pages are formatted
    assert f"```python\n{example}\n```" in page
    template = Path(template_gym.__file__).read_text()
    assert f"```python\n{template}```" in (ROOT / "docs" / "add-a-gym.md").read_text()


@pytest.mark.parametrize("name", GYMS)
async def test_every_gym_is_found_by_its_name_in_any_case(name: str):
    for spelt in (name, name.capitalize(), name.upper()):
        observation = await make_env(spelt, index=4, split="train").reset()
        (task,) = make_tasks(name, num=5, split="train")[4:]
        assert (observation.system, observation.opening) == (GYMS[name].system, task.opening)


def test_an_unknown_gym_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(ValueError, match="'travl' is not known: did you mean 'travel'") as refused:
        make_env("Travl")
    assert all(name in str(refused.value) for name in GYMS) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"split": "dev"}, "train, validation, test"),
        ({"index": -1}, "0 or more"),
        ({"difficulty": -1}, "0 or more"),
        ({"preset": "paper"}, "default, published"),
        ({"constants": "test"}, "training, evaluation"),
        ({"persona": "rude"}, "plain, varied"),
        ({"preset": "published"}, "data=PATH"),
        ({"data": "nowhere.parquet"}, "no such file"),
        ({"task": make_tasks("function", num=1)[0]}, "belongs to function"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_with_the_cure(wrong: dict[str, object], word: str):
    with pytest.raises(ValueError, match=word) as refused:
        make_env("travel", **wrong)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


async def test_task_user_persona_and_budget_are_those_given():
    user, persona = Parrot(), Persona(verbosity=0.5)
    (task,) = make_tasks("travel", num=1, difficulty=2)
    env = make_env("travel", task=task, user=user, persona=persona, max_turns=2)
    first, last = await env.step("[action] Which cabin?"), await env.step("[action] Hm?")
    assert (first.feedback, last.feedback) == ("Which cabin?", "Hm?")
    assert (first.truncated, last.truncated) == (False, True)
    assert [call.persona for call in user.calls] == [persona, persona]
    assert user.calls[0].scenario == task.scenario


async def test_a_varied_persona_belongs_to_the_task():
    async def persona(index: int) -> Persona:
        user = Parrot()
        await make_env("travel", index=index, user=user, persona="varied").step("[action] Which cabin?")
        return user.calls[0].persona

    drawn = [await persona(index) for index in range(8)]
    assert drawn == [await persona(index) for index in range(8)] and len(set(drawn)) > 4


async def test_the_budget_is_the_gyms_own_unless_one_is_given(echo: Gym, monkeypatch: pytest.MonkeyPatch):
    async def num_turns() -> int:
        env, count, truncated = make_env("echo"), 0, False
        while not truncated:
            truncated, count = (await env.step("[action] Hm?")).truncated, count + 1
        return count

    assert await num_turns() == MAX_TURNS
    monkeypatch.setitem(GYMS, "echo", replace(echo, max_turns=3))
    assert await num_turns() == 3


async def test_a_file_gives_the_tasks_by_row_modulo_their_number(echo: Gym, words: Path):
    gym = open_gyms("default", "training", {"Echo": words})["echo"]
    rows = [gym.make_task(make_key("echo", index=index)) for index in range(4)]
    assert [row.scenario["words"][0] for row in rows] == ["amber", "cedar", "ember", "amber"]
    assert [row.key.index for row in rows] == [0, 1, 2, 3]
    env = make_env("echo", data=str(words), index=2)
    assert (await env.step("[action] Word 1?")).feedback == "It is ember."
    assert (await env.step("[answer] ember fjord")).reward == 1


def test_a_file_is_read_once_until_it_changes(echo: Gym, words: Path):
    reads: list[Path] = []

    def load(path: Path) -> list[Task]:
        reads.append(path)
        return load_words(path)

    gym = replace(echo, load_tasks=load)
    assert load_tasks(gym, words) is load_tasks(gym, words) and len(reads) == 1
    words.write_text('[["amber"]]')
    assert len(load_tasks(gym, words)) == 1 and len(reads) == 2
    words.write_text("[]")
    with pytest.raises(ValueError, match="holds no task"):
        load_tasks(gym, words)


def test_gyms_without_a_file_keep_their_generator(echo: Gym, words: Path):
    gyms = open_gyms("default", "training", {"echo": words})
    assert gyms.keys() == GYMS.keys()
    assert gyms["travel"] is GYMS["travel"] and gyms["echo"] is not GYMS["echo"]
    key = TaskKey(gym="echo", split="test", index=0, seed=0, difficulty=0)
    assert GYMS["echo"].make_task(key).scenario != gyms["echo"].make_task(key).scenario
    assert find_gym("ECHO", gyms) is gyms["echo"]
