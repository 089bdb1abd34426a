"""The telepathy gym: rules by hand, and that questions and guesses reveal no more than they should."""

import pytest

from simulators.gyms.telepathy import LEVELS, PROPERTIES
from simulators.task import SPLITS, Split, split_of
from tests.fakes import feedback_of, make_tasks, play

(TASK,) = make_tasks("telepathy", num=1, difficulty=1)
CARDS: dict[str, tuple[str, ...]] = TASK.scenario["cards"]
TARGET: str = TASK.scenario["target"]
OTHER = next(number for number in CARDS if number != TARGET)
REFUSAL = "Ask me about one property at a time."


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_no_card_is_thought_of_in_two_splits(difficulty: int):
    for split in SPLITS:
        tasks = make_tasks("telepathy", num=50, split=split, difficulty=difficulty)
        targets = [
            (task.scenario["cards"][task.scenario["target"]], task.scenario["target"]) for task in tasks
        ]
        assert {split_of(f"telepathy:{' '.join(look)} {number}") for look, number in targets} == {split}


@pytest.mark.parametrize("split", SPLITS)
def test_neither_a_number_nor_a_place_on_the_table_tells_the_target(split: Split):
    tasks = make_tasks("telepathy", num=600, split=split)
    places = [list(task.scenario["cards"]).index(task.scenario["target"]) for task in tasks]
    assert max(places.count(place) for place in range(12)) <= 600 * 0.14
    assert len({task.scenario["target"] for task in tasks}) >= 40


def test_no_two_cards_of_a_table_look_alike_and_no_property_has_two_meanings():
    assert len(set(CARDS.values())) == len(CARDS) == LEVELS[1][1]
    assert len(set(PROPERTIES)) == len(PROPERTIES)


@pytest.mark.parametrize("position", range(3))
async def test_a_property_is_answered_truly(position: int):
    held = CARDS[TARGET][position]
    assert await feedback_of(TASK, f"[action] Is it {held}?") == "Yes."
    for word in PROPERTIES:
        if word not in CARDS[TARGET]:
            assert await feedback_of(TASK, f"[action] Is it {word}?") == "No."


async def test_a_cards_number_in_a_question_gets_no_answer():
    held = CARDS[TARGET][0]
    for number in (TARGET, OTHER):
        for question in (
            f"Is it {number}?",
            f"Is it {held} {number}?",
            f"{held}, {number}-ish?",
            f"#{number} {held}",
        ):
            assert await feedback_of(TASK, f"[action] {question}") == REFUSAL


@pytest.mark.parametrize(
    "question",
    [
        f"Is the first digit {TARGET[0]}?",
        "Is the number even?",
        "Is the number above 50?",
        "Does the first letter come before m?",
        "Which one is it?",
        "Tell me the number.",
        "",
    ],
)
async def test_a_question_about_no_property_gets_no_answer(question: str):
    assert await feedback_of(TASK, f"[action] {question}") == REFUSAL


async def test_a_question_about_several_properties_gets_no_answer():
    first, second = CARDS[TARGET][:2]
    for question in (
        f"Is it {first} and {second}?",
        f"{first} or blue or soup?",
        "red, tree, white?",
        "animal bird?",
    ):
        assert await feedback_of(TASK, f"[action] {question}") == REFUSAL


async def test_several_numbers_in_one_guess_tell_nothing():
    texts = (f"{TARGET} {OTHER}", f"{OTHER}, {TARGET}", " ".join(CARDS), "none of them", "")
    assert len({await feedback_of(TASK, f"[answer] {text}") for text in texts}) == 1
    steps = await play(TASK, [f"[answer] {TARGET} or {OTHER}", f"[answer] {TARGET}"])
    assert [step.reward for step in steps] == [0, 1]


async def test_there_is_one_guess():
    (wrong,) = await play(TASK, [f"[answer] {OTHER}", f"[answer] {TARGET}"])
    assert wrong.terminated and wrong.reward == 0
    (right,) = await play(TASK, [f"[answer] it is number {TARGET}!"])
    assert right.terminated and right.reward == 1


async def test_every_search_gets_the_same_feedback():
    assert len({await feedback_of(TASK, f"[search] {text}") for text in (TARGET, OTHER, "test", "")}) == 1
