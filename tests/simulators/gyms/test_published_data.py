"""Published functions and entities under the default rules: solvable, and without the released loopholes."""

from pathlib import Path

import pytest

from simulators.env import GymEnv
from simulators.gyms import GYMS
from simulators.gyms.arithmetic import parse_rule
from simulators.task import Task
from simulators.users.rule_user import RuleUser
from tests.fakes import play, play_expert, score_of

USERRL = Path(__file__).parents[4] / "shared" / "data" / "userrl"
pytestmark = pytest.mark.skipif(not USERRL.is_dir(), reason="the published data are not here")


def functions() -> list[Task]:
    return GYMS["function"].load_tasks(USERRL / "gyms" / "functions.train.json")


def entities() -> list[Task]:
    return GYMS["telepathy"].load_tasks(USERRL / "gyms" / "entities.train.json")


async def test_every_published_function_has_an_exam_that_its_rule_passes():
    for task in functions():
        rule = parse_rule(task.scenario["rule"])
        values = [rule(inputs) for inputs in task.scenario["exam"]]
        assert len(values) == 3 and all(value == int(value) for value in values)
        texts = ["[search] test", "[answer] " + " ".join(str(int(value)) for value in values)]
        assert score_of(await play(task, texts)) == 1.0


async def test_published_functions_take_integers_only_and_none_after_the_exam():
    task = functions()[5]  # c * b ** 2 / d * a
    steps = await play(task, ["[action] 1 2 3 7", "[action] 1 2 3 0", "[action] 1 2 3 4.0", "[search] test"])
    assert "1.7143" in steps[0].feedback and "no value" in steps[1].feedback
    assert "integers" in steps[2].feedback
    env = GymEnv(GYMS["function"], task=task, user=RuleUser())
    await env.step("[search] test")
    assert "no more questions" in (await env.step("[action] 1 2 3 4")).feedback


async def test_a_published_entity_pays_for_its_name_and_for_no_list_of_names():
    tasks = entities()
    everything = ", ".join(task.scenario["title"] for task in tasks)
    for task in tasks:
        assert score_of(await play(task, [f"[answer] Is it {task.scenario['title'].upper()}?"])) == 1.0
        (step,) = await play(task, [f"[answer] {everything}"])
        assert step.reward == 0.0 and step.terminated


async def test_questions_about_a_published_entity_get_yes_no_or_maybe():
    task = entities()[0]
    texts = ["Is it a person?", "Is it a tree?", "Is it a famous actor?", "Tell me its name.", "What?"]
    steps = await play(task, [f"[action] {text}" for text in texts])
    assert [step.feedback for step in steps[:4]] == ["Yes.", "No.", "Maybe.", "No."]
    assert not any("Einstein" in step.feedback for step in steps)


async def test_scripts_give_up_on_published_tasks_without_a_score():
    for task in (functions()[0], entities()[0]):
        assert score_of(await play_expert(task)) == 0.0


def test_parquet_rows_of_entities_load_and_rows_of_functions_are_refused():
    parquet = USERRL / "parquet"
    assert len(GYMS["telepathy"].load_tasks(parquet / "telepathy_multiturn.train.parquet")) == 360
    with pytest.raises(ValueError, match="no rule and test_case"):
        GYMS["function"].load_tasks(parquet / "function_multiturn.train.parquet")
