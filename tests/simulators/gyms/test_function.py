"""The function gym: rules, rewards by hand, and that skipping the questions does not pay."""

import pytest

from simulators.gyms.function import FAMILIES, QUERY_LIMIT, describe, evaluate
from simulators.task import SPLITS, Task, split_of
from tests.fakes import feedback_of, make_tasks, play, score_of

LEVELS = range(len(FAMILIES))
(TASK,) = make_tasks("function", num=1, difficulty=2)
SEE = "[search] test"


def gold(task: Task) -> list[int]:
    return [evaluate(task.scenario["terms"], inputs) for inputs in task.scenario["exam"]]


def answer_with(values: list[int]) -> str:
    return "[answer] " + " ".join(map(str, values))


@pytest.mark.parametrize("difficulty", LEVELS)
def test_no_function_is_in_two_splits(difficulty: int):
    for split in SPLITS:
        functions = {
            describe(task.scenario["terms"])
            for task in make_tasks("function", num=50, split=split, difficulty=difficulty)
        }
        assert {split_of("function " + function) for function in functions} == {split}


def test_a_description_names_a_function_and_not_the_order_of_its_terms():
    assert describe([(3, ()), (-1, (1, 2)), (2, (0,))]) == describe([(2, (0,)), (3, ()), (-1, (1, 2))])
    assert evaluate([(3, ()), (2, (0,)), (-1, (1, 2))], [5, 2, 4, 9]) == 3 + 10 - 8


async def test_the_exam_closes_the_questions():
    exam = " ".join(map(str, TASK.scenario["exam"][0]))
    feedback = await feedback_of(TASK, SEE, f"[action] {exam}")
    assert str(gold(TASK)[0]) not in feedback.split() and "no more questions" in feedback
    assert "no more questions" in await feedback_of(TASK, SEE, answer_with([10**6] * 3), "[action] 0 0 0 1")


async def test_the_exam_cannot_be_answered_before_it_is_shown():
    steps = await play(TASK, [answer_with(gold(TASK)), answer_with([0, 0, 0]), SEE, answer_with(gold(TASK))])
    assert [step.reward for step in steps] == [0, 0, 0, 1]
    assert "right" not in steps[0].feedback and steps[-1].terminated


@pytest.mark.parametrize(
    "question",
    [
        "1.0 2 3 4",
        "1e0 2 3 4",
        "1.000000000001 2 3 4",
        "1+1 2 3 4",
        "a 2 3 4",
        "1 2 3",
        "1 2 3 4 5",
        "",
        "0x1 2 3 4",
        "1;2;3;4",
        "f(1, 2, 3, 4)",
        "1 2 3 4 please",
        "1_0 2 3 4",
        "++1 2 3 4",
        f"{QUERY_LIMIT + 1} 2 3 4",
        "1 2 3 -1000",
    ],
)
async def test_only_four_small_integers_are_a_question(question: str):
    feedback = await feedback_of(TASK, f"[action] {question}")
    assert "value is" not in feedback and "integers" in feedback


@pytest.mark.parametrize(
    "content", ["1 2", "1 2 3 4", "1 2 3.0", "1 2 3 or 4", "1|2 2 3", "", "1 2 [3,4]", "2*3 1 1"]
)
async def test_only_three_integers_are_an_attempt(content: str):
    steps = await play(TASK, [SEE, f"[answer] {content}", answer_with(gold(TASK))])
    assert "exactly" in steps[1].feedback
    assert [step.reward for step in steps] == [0, 0, 1]


async def test_each_attempt_is_worth_half_of_the_one_before_and_three_end_it():
    wrong, right = answer_with([10**6] * 3), answer_with(gold(TASK))
    for num_wrong, worth in enumerate([1.0, 0.5, 0.25]):
        steps = await play(TASK, [SEE, *[wrong] * num_wrong, right])
        assert score_of(steps) == worth and steps[-1].terminated
    steps = await play(TASK, [SEE, *[wrong] * 5])
    assert len(steps) == 4 and steps[-1].terminated


async def test_finding_the_values_one_by_one_pays_a_quarter():
    values = gold(TASK)
    one = answer_with([values[0], 10**6, 10**6])
    two = answer_with([values[0], values[1], 10**6])
    steps = await play(TASK, [SEE, one, two, answer_with(values)])
    assert [step.reward for step in steps] == pytest.approx([0, 0, 0.25, 0])


async def test_one_right_value_is_luck_and_pays_nothing():
    values = gold(TASK)
    steps = await play(TASK, [SEE, answer_with([values[0], 10**6, 10**6])])
    assert steps[-1].reward == 0


async def test_the_exam_differs_from_what_the_opening_tells():
    assert not set(TASK.opening) & set("0123456789")
