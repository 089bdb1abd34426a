"""The loader of published tau tasks: gold actions solve all of them; invalid files are refused with row and
field."""

import json
import random
from pathlib import Path
from statistics import mean

import pytest

from simulators.gyms.tau import GYM
from tests.simulators.tau.small_shop import (
    CARD,
    DATA,
    USER,
    gold_agent,
    load_one,
    needs_data,
    paid,
    play,
    userrl_row,
    write_shop,
)

RETAIL = DATA / "userrl" / "gyms" / "tau.train.json"
PARQUET = DATA / "userrl" / "parquet" / "tau_multiturn.train.parquet"
TAU2 = DATA / "tau" / "retail_v2" / "tasks.train.json"
CANCEL = ("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})


@pytest.mark.medium
@needs_data
@pytest.mark.parametrize("path, num", [(RETAIL, 500), (TAU2, 74)])
async def test_the_gold_actions_solve_every_published_task(path: Path, num: int):
    tasks = GYM.load_tasks(path)
    assert len(tasks) == num
    assert mean([paid(await play(task, gold_agent(task))) for task in tasks]) == 1
    assert all("policy" in task.opening.lower() for task in tasks)
    json.dumps([task.scenario for task in tasks])


@pytest.mark.medium
@needs_data
def test_parquet_rows_are_the_tasks_that_they_name():
    assert [task.scenario for task in GYM.load_tasks(PARQUET)] == [
        task.scenario for task in GYM.load_tasks(RETAIL)
    ]


@needs_data
def test_a_folder_is_searched_for_its_tasks():
    assert len(GYM.load_tasks(DATA)) == 500 and len(GYM.load_tasks(TAU2.parent)) == 74


@needs_data
def test_customers_know_what_their_instruction_says_of_them():
    tasks = GYM.load_tasks(RETAIL)
    assert all({"name"} < set(task.scenario["known"]) for task in tasks)
    assert tasks[0].scenario["known"] == {"name": "Omar Anderson", "zip": "19031"}
    assert not any(" your " in task.scenario["request"].lower() for task in GYM.load_tasks(TAU2))


def test_reads_and_outputs_of_test_tasks_are_taken_as_they_are(tmp_path: Path):
    row = userrl_row(("get_order_details", {"order_id": "#W1"}), CANCEL, outputs=("10.0",))
    task = load_one(tmp_path, row)
    assert [action["name"] for action in task.scenario["gold"]] == [
        "get_order_details",
        "cancel_pending_order",
    ]
    assert [wish["name"] for wish in task.scenario["wishes"]] == ["cancel_pending_order"]
    assert task.scenario["request"] == ("My name is Ann Lee and my zip code is 10001. I want all my things.")
    assert task.opening == "Be kind.\n\nThe customer: Hi there, I need help."


def changed(**task_fields: object) -> dict:
    row = userrl_row(CANCEL)
    row["info"]["task"].update(task_fields)
    return row


@pytest.mark.parametrize(
    "rows, words",
    [
        ([userrl_row(CANCEL), {"id": "retail-001"}], ("row 1", "'obs'")),
        ([changed(actions={})], ("row 0", "'info.task.actions'")),
        ([changed(actions=[{"name": "x"}])], ("row 0", "'info.task.actions'", "kwargs")),
        ([changed(outputs=[1])], ("row 0", "'info.task.outputs'")),
        ([changed(instruction=None)], ("row 0", "'info.task.instruction'")),
        ([userrl_row(CANCEL, task_id="airline-000")], ("no database of the airline shop",)),
        ([{"id": "1", "evaluation_criteria": {}}], ("row 0", "reason_for_call")),
        ([], ("no record",)),
    ],
)
def test_files_of_another_form_are_refused_with_row_and_field(tmp_path: Path, rows: list, words: tuple):
    write_shop(tmp_path)
    path = tmp_path / "tau_test.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError) as error:
        GYM.load_tasks(path)
    assert all(word in str(error.value) for word in (str(tmp_path), *words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("users.json", "{", ("users.json", "not readable")),
        ("users.json", "[]", ("users.json",)),
        ("orders.json", '{"#W1": {"order_id": "#W1"}}', ("orders.json", "'#W1'", "'user_id'")),
        ("products.json", '{"1": 3}', ("products.json", "'1'")),
    ],
)
def test_broken_databases_are_refused_with_row_and_field(
    tmp_path: Path, name: str, content: str, words: tuple
):
    shop = write_shop(tmp_path)
    (shop / name).write_text(content)
    with pytest.raises(ValueError) as error:
        load_one(tmp_path, userrl_row(CANCEL))
    assert all(word in str(error.value) for word in words)


def test_missing_policies_and_files_are_named(tmp_path: Path):
    (write_shop(tmp_path) / "policy.md").unlink()
    with pytest.raises(ValueError, match=r"policy\.md: no such file"):
        load_one(tmp_path, userrl_row(CANCEL))
    with pytest.raises(ValueError, match="no such file"):
        GYM.load_tasks(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no tasks file"):
        GYM.load_tasks(tmp_path / "empty")


async def test_the_gyms_own_expert_serves_a_published_customer(tmp_path: Path):
    swap = {
        "order_id": "#W2",
        "item_ids": ["21", "21"],
        "new_item_ids": ["22", "22"],
        "payment_method_id": CARD,
    }
    row = userrl_row(CANCEL, ("exchange_delivered_order_items", swap), task_id="retail-train-000")
    task = load_one(tmp_path, row)
    expert = GYM.expert(task.opening, random.Random(0), 0.0)
    texts = [str(next(expert))]
    while True:
        steps = await play(task, texts)
        if steps[-1].terminated or steps[-1].truncated:
            break
        texts.append(str(expert.send(steps[-1].feedback)))
    assert paid(steps) == 1 and USER in steps[1].feedback
