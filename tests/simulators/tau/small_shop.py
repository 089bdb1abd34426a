"""A shop small enough for computation by hand, the published data, and an agent that knows the gold
actions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulators.env import GymEnv, TurnResult
from simulators.gym import Gym
from simulators.gyms.tau import GYM
from simulators.task import Task
from simulators.tau.database import Database, Record
from simulators.tau.shop_registry import TOOLS
from simulators.tau.tools import TauToolCall, run_call
from simulators.users.rule_user import RuleUser

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "tau").is_dir(), reason="the published data are not here")
USER = "ann_lee_1"
CARD, GIFT, PAYPAL = "credit_card_1", "gift_card_2", "paypal_3"


def retail() -> Database:
    """Ann's pending order of a cup (10.00) and delivered order of two hats (20.00 each)."""
    cup: Record = {"name": "Cup", "product_id": "100"}
    hat: Record = {"name": "Hat", "product_id": "200"}
    variants = {
        "100": [("11", "red", 10.0, True), ("12", "blue", 12.5, True), ("13", "green", 70.0, True)],
        "200": [("21", "red", 20.0, True), ("22", "blue", 15.0, True), ("23", "green", 20.0, False)],
    }
    products = {
        kind["product_id"]: {
            **kind,
            "variants": {
                item: {"item_id": item, "options": {"color": color}, "available": is_left, "price": price}
                for item, color, price, is_left in variants[kind["product_id"]]
            },
        }
        for kind in (cup, hat)
    }
    red_cup = {**cup, "item_id": "11", "price": 10.0, "options": {"color": "red"}}
    red_hat = {**hat, "item_id": "21", "price": 20.0, "options": {"color": "red"}}
    orders = {
        "#W1": order("#W1", "pending", [red_cup], amount=10.0, method=GIFT),
        "#W2": order("#W2", "delivered", [red_hat, red_hat], amount=40.0, method=CARD),
    }
    user = {
        "name": {"first_name": "Ann", "last_name": "Lee"},
        "address": {**address("1 Oak Street"), "zip": "10001"},
        "email": "ann.lee1@example.com",
        "payment_methods": {
            CARD: {"source": "credit_card", "id": CARD},
            GIFT: {"source": "gift_card", "balance": 50, "id": GIFT},
            PAYPAL: {"source": "paypal", "id": PAYPAL},
        },
        "orders": ["#W1", "#W2"],
    }
    return Database(tables={"users": {USER: user}, "orders": orders, "products": products})


def order(order_id: str, status: str, items: list[Record], *, amount: float, method: str) -> Record:
    payment = {"transaction_type": "payment", "amount": amount, "payment_method_id": method}
    return {
        "order_id": order_id,
        "user_id": USER,
        "address": address("1 Oak Street"),
        "items": items,
        "status": status,
        "payment_history": [payment],
    }


def address(street: str) -> dict[str, str]:
    parts = {"address1": street, "address2": "", "city": "Austin", "state": "TX", "country": "USA"}
    return {**parts, "zip": "10001"}


def run(database: Database, name: str, *, domain: str = "retail", **arguments: Any) -> tuple[Database, str]:
    return run_call(database, TauToolCall(name=name, arguments=arguments), TOOLS[domain])


def call_text(name: str, **arguments: Any) -> str:
    return f"[answer] {json.dumps({'name': name, 'arguments': arguments})}"


def write_shop(folder: Path) -> Path:
    """The small shop as published files in `folder`/tau/retail."""
    shop = folder / "tau" / "retail"
    shop.mkdir(parents=True)
    for table, records in retail().tables.items():
        (shop / f"{table}.json").write_text(json.dumps(records))
    (shop / "policy.md").write_text("Be kind.")
    return shop


def userrl_row(
    *actions: tuple[str, dict[str, Any]], outputs: tuple[str, ...] = (), task_id: str = "retail-000"
) -> dict[str, Any]:
    """A task of Ann's in the form of UserRL's files."""
    return {
        "id": task_id,
        "obs": "Hi there, I need help.",
        "info": {
            "task": {
                "user_id": USER,
                "actions": [{"name": name, "kwargs": kwargs} for name, kwargs in actions],
                "instruction": "Your name is Ann Lee and your zip code is 10001. You want all your things.",
                "outputs": list(outputs),
            },
            "source": "user",
        },
    }


def load_one(folder: Path, row: dict[str, Any], *, gym: Gym = GYM) -> Task:
    if not (folder / "tau").is_dir():
        write_shop(folder)
    (folder / "tau_test.json").write_text(json.dumps([row]))
    return gym.load_tasks(folder / "tau_test.json")[0]


def gold_agent(task: Task) -> Iterator[str]:
    """Identifies the customer, does what the gold says, tells the outputs, asks until it is happy."""
    scenario = task.scenario
    yield "[action] What are your name, zip code and email?"
    yield call_text("get_user_details", user_id=scenario["user_id"])
    yield "[action] What can I do for you?"
    for action in scenario["gold"]:
        if action["name"] in TOOLS[scenario["domain"]]:
            yield call_text(action["name"], **action["arguments"])
    if scenario["outputs"]:
        yield f"[action] You should know: {', '.join(scenario['outputs'])}."
    while True:
        yield "[action] All is done. Is there anything else?"


async def play(task: Task, texts: Iterator[str] | list[str], *, gym: Gym = GYM) -> list[TurnResult]:
    env = GymEnv(gym, task=task, user=RuleUser({"tau": gym}))
    steps: list[TurnResult] = []
    for text in texts:
        steps.append(await env.step(text))
        if steps[-1].terminated or steps[-1].truncated:
            break
    return steps


def paid(steps: list[TurnResult]) -> float:
    return sum(step.reward for step in steps)
