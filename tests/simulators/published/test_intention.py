"""Published IntentionGym rules: rewards and feedback computed by hand."""

from typing import Any

import pytest

from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards


def detail(name: str, importance: int) -> dict[str, Any]:
    return {
        "description": name,
        "importance": importance,
        "inquiry": f"Which {name}?",
        "options": [f"my {name}"],
    }


DETAILS = [detail("budget", 3), detail("color", 2), detail("size", 1), detail("date", 3)]
TASK = make_task(
    "intention",
    index=0,
    opening="",
    scenario={"id": "i", "category": "c", "task": "Buy a coat.", "details": DETAILS},
)


async def paid(*covered: object) -> list[float]:
    oracle = Oracle([{"covered": places} for places in covered])
    return rewards(await play(TASK, ["[action] q"] * len(covered), user=oracle))


async def test_the_weightiest_detail_pays_and_each_further_one_costs():
    assert await paid([0]) == [1.0]
    assert await paid([1]) == [0.7]
    assert await paid([2]) == [0.4]
    assert await paid([1, 2]) == [pytest.approx(0.5)]
    assert await paid([0, 1, 2, 3]) == [pytest.approx(0.4)]
    assert await paid([2, 2, 2, 2]) == [0.0]  # 0.4 - 0.6, cut at 0


async def test_positions_refer_to_what_remains_and_the_end_comes_when_nothing_does():
    oracle = Oracle([{"covered": [0]}, {"covered": [0, 1]}, {"covered": [0]}])
    steps = await play(TASK, ["[action] q"] * 3, user=oracle)
    assert rewards(steps) == [1.0, pytest.approx(0.5), 1.0]
    assert [step.terminated for step in steps] == [False, False, True]
    assert [len(call.view["remaining"]) for call in oracle.calls] == [4, 3, 1]


async def test_unusable_verdicts_gain_nothing():
    assert await paid(None, "0", [], [9, -1, True, "x", 0.0, None], 3) == [0.0] * 5


@pytest.mark.parametrize("text", ["which one?", "[answer] which one?", "[search] x", "[buy] x"])
async def test_any_text_is_a_question(text: str):
    assert rewards(await play(TASK, [text], user=Oracle([{"covered": [0]}]))) == [1.0]


async def test_the_rule_based_user_covers_by_words_and_says_an_option():
    (step,) = await play(TASK, ["[action] Is there a budget?"])
    assert step.reward == 1.0 and "my budget" in step.feedback
    (step,) = await play(TASK, ["[action] How are you?"])
    assert step.reward == 0.0


@needs_data
def test_the_shipped_file_loads_and_its_weights_sum_as_stated():
    tasks = PUBLISHED["intention"].load_tasks(USERRL / "gyms" / "intentions.train.json")
    worth = {3: 1.0, 2: 0.7, 1: 0.4}
    sums = [sum(worth[detail["importance"]] for detail in task.scenario["details"]) for task in tasks]
    assert len(tasks) == 1012 and sum(sums) / len(sums) == pytest.approx(2.52, abs=0.005)
    with pytest.raises(ValueError, match="importance"):
        PUBLISHED["intention"].load_tasks(USERRL / "parquet" / "intention_multiturn.train.parquet")
