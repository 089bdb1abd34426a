"""Telepathy: the expert finds the thing, and no question or guess tells more than it should."""

from statistics import mean

import pytest

from simulators.gyms.telepathy import LEVELS, NAMES, PROPERTIES
from simulators.task import SPLITS, split_of
from tests.fakes import feedback_of, make_tasks, play, play_expert, play_random, score_of

(TASK,) = make_tasks("telepathy", num=1, difficulty=1)
THINGS: dict[str, tuple[str, ...]] = TASK.scenario["things"]
TARGET: str = TASK.scenario["target"]
OTHER = next(name for name in THINGS if name != TARGET)
REFUSALS = {"Ask me about one property at a time."}


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
async def test_the_expert_solves_every_level_and_random_and_silence_do_not(difficulty: int):
    tasks = make_tasks("telepathy", num=150, difficulty=difficulty)
    assert mean([score_of(await play_expert(task)) for task in tasks]) >= 0.95
    assert mean([score_of(await play_random(task)) for task in tasks]) <= 0.1
    assert mean([score_of(await play(task, ["[finish]"])) for task in tasks]) == 0


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_no_thing_is_thought_of_in_two_splits(difficulty: int):
    for split in SPLITS:
        targets = {
            task.scenario["target"]
            for task in make_tasks("telepathy", num=50, split=split, difficulty=difficulty)
        }
        assert {split_of("telepathy:" + target) for target in targets} == {split}


def test_no_two_things_of_a_table_share_all_values_and_no_name_is_a_value():
    assert len(set(THINGS.values())) == len(THINGS)
    assert not set(PROPERTIES) & {name.lower() for name in NAMES}
    assert len(set(PROPERTIES)) == len(PROPERTIES)


@pytest.mark.parametrize("value", THINGS[TARGET])
async def test_a_property_is_answered_truly(value: str):
    assert await feedback_of(TASK, f"[action] Is it {value}?") == "Yes."


async def test_a_name_in_a_question_gets_no_answer():
    value = THINGS[TARGET][0]
    for name in (TARGET, OTHER):
        for question in (
            f"Is it {name}?",
            f"Is it {value} like {name}?",
            f"is it {name.upper()}?",
            f"{value} {name}-ish?",
        ):
            assert await feedback_of(TASK, f"[action] {question}") in REFUSALS


async def test_a_question_about_the_name_gets_no_answer():
    for question in (
        f"Is the first letter {TARGET[0]}?",
        f"Does the name start with {TARGET[:3]}?",
        "How many letters?",
    ):
        assert await feedback_of(TASK, f"[action] {question}") in REFUSALS


async def test_a_question_about_several_properties_gets_no_answer():
    first, second = THINGS[TARGET][:2]
    for question in (
        f"Is it {first} and {second}?",
        f"Is it {first} or blue or soup?",
        "red, tree, white?",
        "",
    ):
        assert await feedback_of(TASK, f"[action] {question}") in REFUSALS


async def test_several_names_in_one_guess_tell_nothing():
    both = [
        await feedback_of(TASK, f"[answer] {names}") for names in (f"{TARGET} {OTHER}", f"{OTHER}, {TARGET}")
    ]
    neither = [await feedback_of(TASK, f"[answer] {text}") for text in (" ".join(THINGS), "none of them", "")]
    assert set(both) == set(neither)
    steps = await play(TASK, [f"[answer] {TARGET} or {OTHER}", f"[answer] {TARGET}"])
    assert [step.reward for step in steps] == [0, 1]


async def test_there_is_one_guess():
    (wrong,) = await play(TASK, [f"[answer] {OTHER}", f"[answer] {TARGET}"])
    assert wrong.terminated and wrong.reward == 0
    (right,) = await play(TASK, [f"[answer] it is the {TARGET.lower()}!"])
    assert right.terminated and right.reward == 1


async def test_searching_tells_the_same_whatever_is_searched():
    assert len({await feedback_of(TASK, f"[search] {text}") for text in (TARGET, OTHER, "test", "")}) == 1
