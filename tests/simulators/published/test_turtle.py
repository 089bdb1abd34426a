"""Published TurtleGym rules: rewards and feedback computed by hand."""

import pytest

from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards

STATEMENTS = ["The wife is dead.", "The husband killed her.", "The photo shows it."]
TASK = make_task(
    "turtle",
    index=0,
    opening="",
    scenario={
        "title": "t",
        "surface": "s",
        "bottom": "The husband killed his wife, and a photo shows it.",
        "statements": STATEMENTS,
        "weights": [0.5, 0.25, 0.25],
    },
)


async def paid(*scores: object) -> list[float]:
    oracle = Oracle([{"scores": marks} for marks in scores])
    return rewards(await play(TASK, ["[answer] x"] * len(scores), user=oracle))


async def test_a_story_pays_what_exceeds_the_best_so_far():
    assert await paid([0, 1, 0.5], [0, 0, 1], [1, 1, 0], [1, 1, 1]) == [0.375, 0.0, 0.375, 0.25]


async def test_exactly_the_statements_scored_one_are_told():
    steps = await play(
        TASK, ["[answer] x"] * 2, user=Oracle([{"scores": [0.5, 1, 0]}, {"scores": [0, 0.5, 0]}])
    )
    assert STATEMENTS[1] in steps[0].feedback
    assert not any(STATEMENTS[place] in steps[0].feedback for place in (0, 2))
    assert not any(statement in steps[1].feedback for statement in STATEMENTS)


async def test_the_end_is_the_whole_score():
    steps = await play(
        TASK, ["[answer] x"] * 3, user=Oracle([{"scores": [1, 1, 0.5]}, {"scores": [1, 1, 1]}])
    )
    assert [step.terminated for step in steps] == [False, True]


async def test_the_count_of_scores_must_match():
    assert await paid([1, 1], [1, 1, 1, 1], "111", None, [1, "1", 1], [1, float("nan"), 1]) == [0.0] * 6


async def test_untagged_text_is_a_question_without_its_first_letters():
    oracle = Oracle([{"response": "No", "text": "No"}])
    (step,) = await play(TASK, ["Is it a person?"], user=oracle)
    assert oracle.calls[0].question == "person?" and step.feedback == "No"


async def test_the_rule_based_judge_knows_the_bottom_when_it_reads_it():
    steps = await play(TASK, ["[action] Did the husband kill?", f"[answer] {' '.join(STATEMENTS)}"])
    assert rewards(steps) == [0.0, 1.0] and steps[-1].terminated


@needs_data
def test_the_shipped_stories_load_and_parquet_lacks_the_criteria():
    tasks = PUBLISHED["turtle"].load_tasks(USERRL / "gyms" / "stories.train.json")
    assert len(tasks) == 423
    assert all(abs(sum(task.scenario["weights"]) - 1) < 1e-9 for task in tasks)
    with pytest.raises(ValueError, match="evaluation"):
        PUBLISHED["turtle"].load_tasks(USERRL / "parquet" / "turtle_multiturn.train.parquet")
