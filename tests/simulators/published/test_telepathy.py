"""Published TelepathyGym rules: rewards and feedback computed by hand."""

from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task, parse_cutting
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards

TASK = make_task(
    "telepathy",
    index=0,
    opening="",
    scenario={
        "title": "Polar Bear",
        "target_entity": "Polar Bear - large bear species of the Arctic, with white fur",
        "category": "animal",
    },
)


async def test_wrong_guesses_are_free_and_a_right_one_ends_it():
    oracle = Oracle([{"judgment": "No"}, {"judgment": "Maybe"}, {}, {"judgment": "Yes"}])
    steps = await play(TASK, ["[answer] x"] * 4, user=oracle)
    assert rewards(steps) == [0.0, 0.0, 0.0, 1.0] and steps[-1].terminated


async def test_questions_never_pay():
    oracle = Oracle([{"response": "Yes", "judgment": "Yes", "text": "Yes"}])
    (step,) = await play(TASK, ["[action] Is it a bear?"], user=oracle)
    assert step.reward == 0.0 and step.feedback == "Yes" and not step.terminated


def test_untagged_text_loses_eight_letters():
    assert parse_cutting("Is it a person?").content == "person?"
    assert parse_cutting("[search] fur?").content == "fur?"
    assert parse_cutting("short").content == ""


async def test_the_rule_based_user_answers_by_words_and_judges_by_name():
    texts = ["[action] Is it an animal?", "[action] Is it white?", "[action] Is it a person?", "[action] ?"]
    steps = await play(TASK, [*texts, "[answer] a bear", "[answer] the POLAR bear!"])
    assert [step.feedback for step in steps[:4]] == ["Yes", "Yes", "No", "Maybe"]
    assert rewards(steps) == [0.0] * 5 + [1.0]


@needs_data
def test_both_shipped_forms_hold_the_same_entities():
    gym = PUBLISHED["telepathy"]
    rows = gym.load_tasks(USERRL / "parquet" / "telepathy_multiturn.train.parquet")
    entities = gym.load_tasks(USERRL / "gyms" / "entities.train.json")
    assert len(rows) == len(entities) == 360
    assert {task.scenario["target_entity"] for task in rows} == {
        task.scenario["target_entity"] for task in entities
    }
    assert all(task.scenario["title"].lower() not in task.opening.lower() for task in rows)
