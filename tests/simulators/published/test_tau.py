"""Published TauGym rules: rewards by hand, and the short cuts that only these rules pay."""

from pathlib import Path

import pytest

from simulators.gyms.tau import GYM as DEFAULT
from simulators.published.tau import GYM
from simulators.task import Task
from tests.simulators.published.scripted_judges import Oracle
from tests.simulators.published.scripted_judges import play as play_published
from tests.simulators.tau.small_shop import (
    DATA,
    USER,
    call_text,
    gold_agent,
    load_one,
    needs_data,
    paid,
    play,
    userrl_row,
)

TRANSFER = call_text("transfer_to_human_agents", summary="bye")
RIGHT = ("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
READ = ("get_order_details", {"order_id": "#W1"})


async def steps_of(task: Task, *texts: str, stops: bool = False):
    oracle = Oracle([{"stop": stops}] * len(texts))
    return await play_published(task, texts, user=oracle, gym=GYM)


@needs_data
async def test_published_train_tasks_open_with_the_cached_line_and_can_be_served():
    tasks = GYM.load_tasks(DATA / "userrl" / "gyms" / "tau.train.json")
    assert tasks[0].opening == "Hi there! I'm looking to return a few items from an order."
    assert [paid(await play(task, gold_agent(task), gym=GYM)) for task in tasks[:100]] == [1] * 100


async def test_the_customers_stop_is_graded_and_nothing_else_is(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(RIGHT, outputs=("12",)), gym=GYM)
    right, said = call_text(RIGHT[0], **RIGHT[1]), "[action] That is 3,120 in all."
    steps = await steps_of(task, right, said)
    assert [step.reward for step in steps] == [0, 0] and not steps[-1].terminated
    steps = await steps_of(task, right, said, stops=True)
    assert [step.reward for step in steps] == [0, 1] and steps[-1].terminated
    assert paid(await steps_of(task, said, stops=True)) == 0
    assert paid(await steps_of(task, right, "[action] Done.", stops=True)) == 0
    steps = await steps_of(task, right, said, "[finish]")
    assert steps[-1].reward == 0 and steps[-1].terminated


async def test_tools_are_listed_once_without_types(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(RIGHT), gym=GYM)
    first, second, help_, other = await steps_of(
        task, "[search] tools", "[search] tools", "[search] help", "[search] weather"
    )
    assert "cancel_pending_order" in first.feedback and "reason" in first.feedback
    assert "enum" not in first.feedback and "string" not in first.feedback
    assert "look back" in second.feedback and "customer" in help_.feedback and "help" in other.feedback
    assert "Be kind." not in task.opening + GYM.system


@pytest.mark.parametrize(
    "text, is_call",
    [
        ('{"name": "get_user_details", "arguments": {"user_id": "ann_lee_1"}}', True),
        ('get_user_details: {"user_id": "ann_lee_1"}', True),
        ('get_user_details {"user_id": "ann_lee_1"}', False),
        ("get_user_details user_id=ann_lee_1", False),
        ("get_user_details", False),
        ("{", False),
        ("", False),
    ],
)
async def test_two_forms_of_calls_are_read(tmp_path: Path, text: str, is_call: bool):
    task = load_one(tmp_path, userrl_row(RIGHT), gym=GYM)
    (step,) = await steps_of(task, f"[answer] {text}")
    assert step.feedback.startswith("{" if is_call else "Error: ") and step.reward == 0


async def test_a_call_of_respond_is_speech_and_searches_are_one_word(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(READ, outputs=("12",)), gym=GYM)
    oracle = Oracle([{"stop": True}])
    (step,) = await play_published(task, [call_text("respond", content="It is 1,2.")], user=oracle, gym=GYM)
    assert oracle.calls[0].question == "It is 1,2." and step.reward == 1 and step.terminated
    texts = ["[search] TOOLS ", "[search] list tools", call_text("fly"), '[answer] {"arguments": {}}']
    listed, other, unknown, nameless = await steps_of(task, *texts)
    assert "cancel_pending_order" in listed.feedback and other.feedback.startswith("Search for")
    assert unknown.feedback == "Unknown action fly" and nameless.feedback == "Unknown action "


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 4299, "[" * 150, "9" * 5000])
async def test_numbers_of_any_kind_do_no_harm(tmp_path: Path, number: str):
    task = load_one(tmp_path, userrl_row(RIGHT), gym=GYM)
    for name in ("calculate", "think", "transfer_to_human_agents"):
        (step,) = await steps_of(task, f'[answer] {name}: {{"expression": {number}}}')
        assert step.reward == 0 and isinstance(step.feedback, str)


async def test_sixteen_turns_are_played(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(RIGHT), gym=GYM)
    steps = await steps_of(task, *["[action] Hm."] * 20)
    assert len(steps) == 16 and steps[-1].truncated and paid(steps) == 0


async def test_a_transfer_pays_at_once_where_nothing_had_to_be_done(tmp_path: Path):
    row = userrl_row(READ)
    assert paid(await play(load_one(tmp_path, row, gym=GYM), [TRANSFER], gym=GYM)) == 1
    assert paid(await play(load_one(tmp_path, row), [TRANSFER], gym=DEFAULT)) == 0


async def test_a_transfer_collects_finished_changes_early(tmp_path: Path):
    row = userrl_row(RIGHT)
    texts = [call_text(RIGHT[0], **RIGHT[1]), TRANSFER]
    assert paid(await play(load_one(tmp_path, row, gym=GYM), texts, gym=GYM)) == 1
    assert paid(await play(load_one(tmp_path, row), texts, gym=DEFAULT)) == 0


async def test_an_output_inside_another_number_counts(tmp_path: Path):
    row = userrl_row(READ, outputs=("12",))
    look = call_text("get_user_details", user_id=USER)
    texts = ["[action] Who are you?", look, "[action] 31208", "[action] All done. Anything else?"]
    assert paid(await play(load_one(tmp_path, row, gym=GYM), [*texts, TRANSFER], gym=GYM)) == 1
    assert paid(await play(load_one(tmp_path, row), [*texts, texts[-1], TRANSFER], gym=DEFAULT)) == 0
