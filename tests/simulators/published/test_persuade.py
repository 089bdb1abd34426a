"""Published PersuadeGym rules: rewards and feedback computed by hand."""

import pytest

from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards

TASK = make_task(
    "persuade",
    index=0,
    opening="",
    scenario={"id": "p", "claim": "Cats are better than dogs", "argument": "They are quiet and clean."},
)


async def paid(*stances: object) -> list[float]:
    oracle = Oracle([{"stance": stance} for stance in stances])
    return rewards(await play(TASK, ["[answer] x"] * len(stances), user=oracle))


async def test_each_level_towards_disagreement_pays_a_sixth():
    assert await paid("Agree", "Neutral", "Strongly Disagree") == [0.166667, 0.333333, 0.5]
    assert await paid("Neutral", "Agree", "Neutral") == [0.5, 0.0, 0.333333]


async def test_the_end_is_strong_disagreement_and_the_user_sees_its_last_stance():
    oracle = Oracle([{"stance": "Neutral"}, {"stance": "Strongly Disagree"}])
    steps = await play(TASK, ["[answer] x", "untagged"], user=oracle)
    assert [step.terminated for step in steps] == [False, True]
    assert [call.view["stance"] for call in oracle.calls] == ["Strongly Agree", "Neutral"]


async def test_a_verdict_without_a_stance_changes_nothing():
    assert await paid(None, 3, "Neutral") == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("text", ["[answer] x", "[action] x", "[search] x", "x"])
async def test_every_text_is_an_argument(text: str):
    assert rewards(await play(TASK, [text], user=Oracle([{"stance": "Agree"}]))) == [0.166667]


async def test_the_rule_based_user_moves_for_new_words_on_the_subject_only():
    text = "[answer] Quiet animals rarely protect houses, comfort children or rescue drowning swimmers."
    assert rewards(await play(TASK, [text, text, "[answer] No."])) == [0.166667, 0.0, 0.0]


@needs_data
def test_both_shipped_files_load():
    tasks = PUBLISHED["persuade"].load_tasks(USERRL / "parquet" / "persuasion_multiturn.train.parquet")
    merged = PUBLISHED["persuade"].load_tasks(USERRL / "parquet" / "alltrain_multiturn.train.parquet")
    assert len(tasks) == len(merged) == 378
    assert {task.scenario["id"] for task in tasks} == {task.scenario["id"] for task in merged}
    assert all(task.scenario["claim"] in task.opening for task in tasks)
    assert all(task.scenario["argument"] not in task.opening for task in tasks)
