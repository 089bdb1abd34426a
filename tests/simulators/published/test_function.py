"""Published FunctionGym rules: rewards and feedback computed by hand."""

from pathlib import Path

import pytest

from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from tests.simulators.published.scripted_judges import USERRL, needs_data, play, rewards

TASK = make_task(
    "function",
    index=0,
    opening="",
    scenario={"id": "f", "rule": "c * b ** 2 / d - a", "test_case": [1, 3, 5, 3], "expected_result": 14.0},
)


async def said(*texts: str) -> str:
    return (await play(TASK, texts))[-1].feedback


async def test_a_query_takes_any_four_signed_decimals_and_rounds_to_four_places():
    assert (await said("[action] 1 1 1 3")).endswith(" -0.6667")  # 1/3 - 1
    assert (await said("[action] 1e5 2 2")).endswith(" 24.0")  # 1 5 2 2: 2 * 25 / 2 - 1
    assert (await said("[action] a=0.5, b=1 c=1 d=1")).endswith(" 0.5")
    assert (await said("[action] 0 1-2 1")).endswith(" -2.0")  # 0, 1, -2, 1


async def test_refusals_cost_nothing_and_end_nothing():
    texts = ["[action] 1 2 3", "[action] 1 3 5 3", "[action] 1 1 1 0", "[search] x", "[answer] y", "hello"]
    steps = await play(TASK, texts)
    assert rewards(steps) == [0.0] * 6 and not steps[-1].terminated
    assert (
        "four" in steps[0].feedback and "test case" in steps[1].feedback and "no value" in steps[2].feedback
    )


async def test_search_shows_the_test_case_and_answers_are_unlimited_and_count_within_a_millionth():
    steps = await play(TASK, ["[search] test", "[answer] 13", "[answer] 14.000002", "[answer] 14.0000009"])
    assert steps[0].feedback.endswith("1 3 5 3")
    assert rewards(steps) == [0.0, 0.0, 0.0, 1.0] and steps[-1].terminated


async def test_finish_ends_and_tells_the_answer():
    (step,) = await play(TASK, ["[finish]"])
    assert step.terminated and step.reward == 0.0 and "14.0" in step.feedback


@needs_data
async def test_all_shipped_expected_results_match_their_rules():
    for task in PUBLISHED["function"].load_tasks(USERRL / "gyms" / "functions.train.json"):
        steps = await play(task, [f"[answer] {task.scenario['expected_result']}"])
        assert rewards(steps) == [1.0]


@needs_data
def test_parquet_rows_lack_the_rule_and_are_refused():
    with pytest.raises(ValueError, match="no rule and test_case"):
        PUBLISHED["function"].load_tasks(USERRL / "parquet" / "function_multiturn.train.parquet")


@pytest.mark.parametrize("rule", ["__import__('os')", "a.b", "a if b else c", "e + a", "a +", "a" * 300])
def test_a_rule_that_is_no_arithmetic_is_refused_with_its_row(tmp_path: Path, rule: str):
    path = tmp_path / "f.json"
    path.write_text(f'[{{"id": "f", "rule": "{rule}", "test_case": [1, 2, 3, 4], "expected_result": 1}}]')
    with pytest.raises(ValueError, match=r"row 0: field 'rule'"):
        PUBLISHED["function"].load_tasks(path)
