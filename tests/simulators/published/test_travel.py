"""Published TravelGym rules: rewards by hand, on a trip in the layout of the released loader."""

import copy
from pathlib import Path

import pytest

from simulators.published import PUBLISHED, published_gyms
from simulators.published.travel import APOLOGY, BACKEND_ISSUE, LOOK_BACK, NOT_RELATED, REFINE
from simulators.published.travel_user import NO_PREFERENCE, TOO_VAGUE
from simulators.task import Task
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards
from tests.simulators.published.trip_data import SCENARIO, load_trip, write_trip


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_trip(tmp_path)


def hit(preference_id: str) -> dict[str, object]:
    return {"type": 2, "preference_id": preference_id, "text": "a hint"}


async def test_a_preference_pays_once_and_then_is_gone(task: Task):
    oracle = Oracle([hit("P1"), hit("P1"), hit("P4")])
    steps = await play(task, ["[action] q"] * 3, user=oracle)
    assert rewards(steps) == [0.6, 0.0, 0.6]
    assert [len(call.view["remaining"]) for call in oracle.calls] == [4, 3, 3]


async def test_the_first_aligned_search_pays_and_shows_all_options_without_what_they_are(task: Task):
    aligned = {"alignment_judgement": "True", "alignment_aspect": "hotel"}
    oracle = Oracle([aligned, aligned, {"alignment_judgement": "False", "alignment_aspect": "hotel"}])
    steps = await play(task, ["[search] q"] * 3, user=oracle)
    assert rewards(steps) == [0.2, 0.0, 0.0]
    assert all(f'"H{n}"' in steps[0].feedback for n in range(1, 7))
    assert "reason" not in steps[0].feedback and "wrong" not in steps[0].feedback
    assert [step.feedback for step in steps[1:]] == [LOOK_BACK, REFINE]


@pytest.mark.parametrize(
    "facts",
    [
        {"alignment_judgement": True, "alignment_aspect": "hotel"},
        {"alignment_judgement": "True", "alignment_aspect": "car"},
    ],
)
async def test_only_the_text_true_and_a_known_aspect_align(task: Task, facts: dict[str, object]):
    (step,) = await play(task, ["[search] q"], user=Oracle([facts]))
    assert step.feedback == BACKEND_ISSUE and step.reward == 0.0


async def test_every_fifth_search_fails_without_asking(task: Task):
    oracle = Oracle(lambda call: {"alignment_judgement": "False", "alignment_aspect": "hotel"})
    steps = await play(task, ["[search] q"] * 11, user=oracle)
    assert [at for at, step in enumerate(steps, 1) if step.feedback == BACKEND_ISSUE] == [5, 10]
    assert len(oracle.calls) == 9


async def test_an_answer_deletes_its_aspects_preferences_and_only_the_first_counts(task: Task):
    oracle = Oracle([hit("P1"), hit("P3")])
    texts = ["[answer] F2", "[answer] F1", "[action] q", "[action] q", "[answer] none", "[answer] H9"]
    assert rewards(await play(task, texts, user=oracle)) == [0.8, 0.0, 0.0, 0.6, 0.0, 0.0]


@pytest.mark.parametrize(
    ("answers", "paid", "words"),
    [
        (["F1,H2"], [1.8], "best"),
        (["F2, H9"], [0.8], "not the best one. Others are wrong"),
        (["F1,H9"], [1.0], "Others are wrong"),
        (["F9,C4"], [0.0], "neither"),
        (["I take F1"], [0.0], "alone"),
        (["f1"], [0.0], "alone"),
        (["X1"], [0.0], "alone"),
        (["F1,"], [0.0], "alone"),
        (["F1, F2"], [0.0], "already"),  # F1 is spent without pay
        (["F2,nothing", "F1"], [0.0, 0.0], "already"),
        (["C4", "C5"], [0.0, 0.0], "already"),  # an aspect that the trip does not have
    ],
)
async def test_ids_are_worked_off_from_the_left_and_a_refusal_pays_nothing(
    task: Task, answers: list[str], paid: list[float], words: str
):
    steps = await play(task, [f"[answer] {ids}" for ids in answers])
    assert rewards(steps) == paid and words in steps[-1].feedback and not steps[-1].terminated


async def test_best_ids_before_a_refusal_end_the_dialogue_unpaid(task: Task):
    (step,) = await play(task, ["[answer] F1,H1,H2"])
    assert step.reward == 0.0 and step.terminated
    oracle = Oracle([hit("P1")])
    steps = await play(task, ["[answer] F2,?", "[action] q"], user=oracle)
    assert rewards(steps) == [0.0, 0.0] and [wish["id"] for wish in oracle.calls[0].view["remaining"]] == [
        "P3",
        "P4",
    ]


@pytest.mark.parametrize(
    ("facts", "reward", "feedback"),
    [
        ({"type": "2", "preference_id": " P1 "}, 0.6, "Well."),
        ({"type": 2, "preference_id": "P9"}, 0.0, "Well."),
        ({"type": "3"}, 0.0, NO_PREFERENCE),
        ({"type": 4}, 0.0, TOO_VAGUE),
        ({"type": 7}, 0.0, "Well."),
    ],
)
async def test_types_are_numbers_or_text(task: Task, facts: dict[str, object], reward: float, feedback: str):
    (step,) = await play(task, ["[action] q"], user=Oracle([facts]))
    assert (step.reward, step.feedback) == (reward, feedback)


async def test_a_search_about_nothing_that_is_needed_has_its_own_words(task: Task):
    verdict = {"alignment_judgement": "N/A", "alignment_aspect": "N/A"}
    (step,) = await play(task, ["[search] q"], user=Oracle([verdict]))
    assert (step.reward, step.feedback) == (0.0, NOT_RELATED)


async def test_the_end_is_all_best_ids_not_all_aspects(task: Task):
    steps = await play(task, ["[answer] F1", "[answer] H2", "[answer] H1"] + ["[answer] F1"] * 20)
    assert rewards(steps)[:3] == [1.0, 0.8, 0.0]
    assert len(steps) == 16 and steps[-1].truncated
    steps = await play(task, ["[answer] F1", "[answer] H1"])
    assert rewards(steps) == [1.0, 1.0] and steps[-1].terminated


async def test_the_fourth_quiet_turn_gets_an_apology_and_no_preference(task: Task):
    oracle = Oracle(lambda call: {"type": 1, "text": "Fine."})
    steps = await play(task, ["[action] hi"] * 8, user=oracle)
    assert [step.feedback for step in steps] == ["Fine.", "Fine.", "Fine.", APOLOGY] * 2
    assert all(len(call.view["remaining"]) == 4 for call in oracle.calls)


async def test_training_pays_preferences_more_searches_nothing_and_shows_it(task: Task):
    oracle = Oracle([hit("P1"), {"alignment_judgement": "True", "alignment_aspect": "hotel"}])
    gym = published_gyms("training")["travel"]
    steps = await play(task, ["[action] q", "[search] q"] + ["[answer] F1"] * 20, user=oracle, gym=gym)
    assert rewards(steps)[:3] == [0.8, 0.0, 1.0] and len(steps) == 15
    assert steps[0].feedback.endswith("\nReward: 0.8") and steps[1].feedback.endswith("\nReward: 0.0")


async def test_the_rule_based_traveller_hints_and_its_search_wants_the_arguments(task: Task):
    texts = [
        "[action] Is breakfast important in the hotel?",
        "[action] Which rating should the flight have?",
        "[search] hotel",
        "[search] hotel in Oslo from May 4",
    ]
    steps = await play(task, texts)
    assert rewards(steps) == [0.6, 0.6, 0.0, 0.2] and "hungry" in steps[0].feedback


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dimensions",), "hotel"),
        (("hotel",), 3),
        (("hotel", "best_id"), 7),
        (("hotel", "best_id"), "77"),
        (("hotel", "options"), []),
        (("hotel", "options", "wrong"), [{}]),
        (("hotel", "preferences"), [["hotel"]]),
    ],
)
def test_a_scenario_of_another_schema_is_refused_with_its_field(
    tmp_path: Path, path: tuple[str, ...], value: object
):
    scenario = copy.deepcopy(SCENARIO)
    inside = scenario
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    with pytest.raises(ValueError, match=f"row 0: field '{path[0]}"):
        PUBLISHED["travel"].load_tasks(write_trip(tmp_path, scenario))


@needs_data
def test_the_shipped_parquet_is_refused_with_what_it_lacks():
    with pytest.raises(ValueError, match="preferences, options, arguments and correct_ids"):
        PUBLISHED["travel"].load_tasks(USERRL / "parquet" / "travel22_multiturn_onechoice.train.parquet")
