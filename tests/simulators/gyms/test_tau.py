"""The tau gym: serving the customer pays; acting without asking or looking up, and short cuts, do not."""

import json
import random
import time
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.env import GymEnv
from simulators.gyms.tau import GYM, MAX_TURNS, WISHES
from simulators.message import CHOICES
from simulators.persona import PLAIN, Persona
from simulators.task import SPLITS, Task, split_of
from simulators.tau import toy_shop
from simulators.tau.shop_registry import TOOLS
from simulators.user import UserReply
from simulators.users.persona_style import persona_aware
from simulators.users.rule_user import RuleUser
from tests.effort import examples
from tests.fakes import make_key, make_tasks
from tests.simulators.tau.small_shop import USER, call_text, gold_agent, load_one, paid, play, userrl_row

LEVELS = range(len(WISHES))
TRANSFER = call_text("transfer_to_human_agents", summary="bye")
BYE = "[action] All is done. Anything else?"
CANCEL = ("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
READ = ("get_order_details", {"order_id": "#W1"})
HAND_OVER = ("transfer_to_human_agents", {"summary": "cannot help"})


async def play_expert(task: Task, *, persona: Persona = PLAIN, guess_rate: float = 0.0) -> tuple[float, int]:
    """Score and turns of the expert who listens."""
    env = GymEnv(GYM, task=task, user=RuleUser({"tau": GYM}), persona=persona)
    expert = persona_aware(GYM.expert(task.opening, random.Random(task.key.index), guess_rate))
    step = await env.step(str(next(expert)))
    score, num_turns = step.reward, 1
    while not (step.terminated or step.truncated):
        step = await env.step(str(expert.send(step.feedback)))
        score, num_turns = score + step.reward, num_turns + 1
    return score, num_turns


@pytest.mark.parametrize("difficulty", LEVELS)
async def test_acting_without_asking_loses(difficulty: int):
    tasks = make_tasks("tau", num=60, difficulty=difficulty)
    assert mean([(await play_expert(task, guess_rate=1.0))[0] for task in tasks]) <= 0.5


@pytest.mark.parametrize("difficulty", LEVELS)
def test_no_customer_is_in_two_splits(difficulty: int):
    for split in SPLITS:
        for task in make_tasks("tau", num=40, split=split, difficulty=difficulty):
            source, user = task.scenario["source"], task.scenario["user_id"]
            name = f"tau:{source}:{user}" if difficulty == 0 else f"tau:{user}"
            assert split_of(name) == split


def test_level_0_is_short_and_its_meanings_are_many():
    tasks = make_tasks("tau", num=300, split="train")
    assert len({json.dumps(task.scenario["gold"]) for task in tasks}) > 250
    assert all(len(task.opening.split()) < 10 for task in tasks)
    assert {task.scenario["gold"][0]["name"] for task in tasks} == {
        toy_shop.CANCEL,
        toy_shop.RETURN,
        toy_shop.EXCHANGE,
    }


def test_the_record_decides_what_fulfils_the_same_wish():
    tasks = make_tasks("tau", num=200, split="train")
    undo = {
        (
            toy_shop.tables(t.scenario["source"])["orders"][t.scenario["user_id"]]["status"],
            t.scenario["gold"][0]["name"],
        )
        for t in tasks
        if t.scenario["wishes"][0]["text"].startswith("Undo")
    }
    assert undo == {("pending", toy_shop.CANCEL), ("delivered", toy_shop.RETURN)}


def test_the_same_key_is_the_same_task_and_scenarios_are_json():
    for difficulty in LEVELS:
        task = GYM.make_task(make_key("tau", difficulty=difficulty))
        again = GYM.make_task(make_key("tau", difficulty=difficulty))
        assert task == again and json.loads(json.dumps(task.scenario)) == task.scenario


async def test_a_thousand_environments_are_made_in_a_second():
    began = time.process_time()
    for index in range(1000):
        key = make_key("tau", index=index, difficulty=index % len(WISHES))
        GymEnv(GYM, task=GYM.make_task(key), user=RuleUser({"tau": GYM}))
    assert time.process_time() - began < 1


async def test_tools_are_listed_with_their_schemas_and_the_policy_is_shown():
    (task,) = make_tasks("tau", num=1, difficulty=1)
    (step,) = await play(task, ["[search] tools"])
    names = [json.loads(line)["name"] for line in step.feedback.splitlines()]
    assert names == list(TOOLS["retail"]) and "enum" in step.feedback
    assert "Policy: " in task.opening and "Small shop: " in GYM.system


async def test_a_wrong_call_is_explained_and_changes_nothing(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(CANCEL))
    calls = ["[answer] rob", "[answer] {", call_text("cancel_pending_order", order_id="#W1", reason="whim")]
    steps = await play(task, [*calls, "[finish]"])
    assert steps[0].feedback == "Unknown action rob"
    assert all(step.feedback.startswith("Error: ") for step in steps[1:3]) and paid(steps) == 0


async def test_the_state_and_the_outputs_are_graded_at_the_goodbye(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(CANCEL, outputs=("10.5", "red cup")))
    start = ["[action] What can I do for you?", call_text(CANCEL[0], **CANCEL[1])]
    told = "[action] It costs $10.5, for the Red Cup."
    assert paid(await play(task, [*start, told, BYE])) == 1
    assert paid(await play(task, [*start, BYE])) == 0
    assert paid(await play(task, [start[0], told, BYE])) == 0
    inside = "[action] It costs 110.5 or 10.55, for the red cups."
    assert paid(await play(task, [*start, inside, BYE])) == 0
    numbers = " ".join(f"{number / 2}" for number in range(60))
    assert paid(await play(task, [*start, f"[action] {numbers}, red cup", BYE])) == 0


async def test_a_second_wrong_change_undoes_the_reward(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(CANCEL))
    wrong = call_text(
        "return_delivered_order_items", order_id="#W2", item_ids=["21"], payment_method_id="gift_card_2"
    )
    right = call_text(CANCEL[0], **CANCEL[1])
    ask = "[action] What can I do for you?"
    assert paid(await play(task, [ask, right, BYE])) == 1
    assert paid(await play(task, [ask, right, wrong, BYE])) == 0


async def test_doing_nothing_pays_only_with_a_customer_who_was_served(tmp_path: Path):
    task = load_one(tmp_path, userrl_row(READ))
    ask, identify = "[action] What can I do for you?", call_text("get_user_details", user_id=USER)
    for texts in ([TRANSFER], ["[finish]"], [ask, TRANSFER], [ask, BYE], [identify, "[finish]"], [BYE] * 30):
        assert paid(await play(task, texts)) == 0
    assert paid(await play(task, [ask, identify, BYE])) == 1


async def test_a_transfer_right_after_the_writes_collects_nothing(tmp_path: Path):
    right = call_text(CANCEL[0], **CANCEL[1])
    task = load_one(tmp_path, userrl_row(CANCEL))
    assert paid(await play(task, ["[action] What can I do?", right, TRANSFER])) == 0
    handed = load_one(tmp_path, userrl_row(CANCEL, HAND_OVER))
    assert paid(await play(handed, ["[action] What can I do?", right, TRANSFER])) == 1
    pure = load_one(tmp_path, userrl_row(HAND_OVER))
    assert paid(await play(pure, [TRANSFER])) == 0
    assert paid(await play(pure, ["[action] What can I do?", TRANSFER])) == 1


async def test_nothing_is_paid_twice_and_nothing_after_the_budget():
    (task,) = make_tasks("tau", num=1, difficulty=1)
    steps = await play(task, ["[action] Blah."] * 99)
    assert len(steps) == MAX_TURNS and steps[-1].truncated and paid(steps) == 0
    served = await play(task, gold_agent(task))
    assert [step.reward for step in served] == [0.0] * (len(served) - 1) + [1.0]


@pytest.mark.parametrize("facts", [{}, {"stop": "yes"}, {"wish": "x"}, {"wish": [1]}, {"told": 3}])
def test_replies_of_no_use_are_shown_and_gain_nothing(facts: dict):
    (task,) = make_tasks("tau", num=1)
    action = GYM.rules.parse_action("[action] Hello?")
    assert action is not None
    outcome = GYM.apply_action(task, GYM.initial_state(task), action, UserReply(text="Hm.", facts=facts))
    assert (outcome.feedback, outcome.score, outcome.done) == ("Hm.", 0.0, False)
    json.dumps(GYM.user_view(outcome.state))


NAMES = st.sampled_from([*TOOLS["retail"], *TOOLS["stall"], "rob", "", "name"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["#W1", "37", USER, "21"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["order", "order_id", "item_ids", "payment_method_id", "reason", "user_id", "expression", "x"]
)
CALLS = st.one_of(
    st.builds(
        lambda n, a: json.dumps({"name": n, "arguments": a}), NAMES, st.dictionaries(KEYS, VALUES, max_size=4)
    ),
    st.builds(lambda n, a: f"{n} {json.dumps(a)}", NAMES, VALUES),
    st.builds(
        lambda n, a: " ".join([n, *(f"{k}={v}" for k, v in a.items())]),
        NAMES,
        st.dictionaries(KEYS, VALUES, max_size=4),
    ),
    st.builds(lambda n, c, k: f'{n} {{"a": {c * k}', NAMES, st.sampled_from("[{(9-"), st.integers(0, 2000)),
    st.text(max_size=60),
)
TEXTS = st.builds(lambda choice, text: f"[{choice}] {text}", st.sampled_from(CHOICES[:3]), CALLS) | st.text(
    max_size=30
)


@settings(max_examples=examples(300), deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6),
    index=st.integers(0, 40),
    difficulty=st.sampled_from(LEVELS),
)
async def test_no_text_breaks_the_rules(texts: list[str], index: int, difficulty: int):
    task = GYM.make_task(make_key("tau", index=index, difficulty=difficulty))
    steps = await play(task, texts)
    assert all(step.reward in (0.0, 1.0) for step in steps) and paid(steps) <= 1
