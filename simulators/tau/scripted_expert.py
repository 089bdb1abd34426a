"""Scripted experts of the tau gym: they ask, look up, get a confirmation, act and say goodbye, using only the
opening and feedback."""

import json
import random
import re
from collections.abc import Generator
from typing import Any

from simulators.gym import Expert
from simulators.message import Action
from simulators.tau import toy_shop
from simulators.tau.customer_phrasing import VERBS, label, options_label
from simulators.tau.retail_tools import ADDRESS

Talk = Generator[Action, str, str]
CLOSE = "Done. Anything else?"
DETAILS = "Which change exactly is next, in which order and which items?"


def stall_expert(rng: random.Random, guess_rate: float) -> Expert:
    """Asks for order and wish, reads the record, acts. At `guess_rate` it guesses one of them."""
    number = (yield from _ask("Which order?", rng, guess_rate)).rstrip(".").split()[-1:] or [
        rng.choice(toy_shop.NUMBERS)
    ]
    wish = yield from _ask("What shall I do?", rng, guess_rate)
    if not wish:
        wish = rng.choice(
            (f"I want {rng.choice(toy_shop.COLORS)}.", f"Undo it because {rng.choice(toy_shop.REASONS)}.")
        )
    value = wish.rstrip(".").split()[-1]
    if rng.random() < guess_rate:
        status, paid = rng.choice(toy_shop.STATUSES), rng.choice(toy_shop.METHODS)
    else:
        record = yield Action(choice="answer", content=f"{toy_shop.ORDER} order={number[0]}")
        fields = dict(pair.split("=", 1) for pair in record.split() if "=" in pair)
        status, paid = fields.get("status", ""), fields.get("paid", "")
    if "want" in wish:
        call = f"{toy_shop.EXCHANGE} order={number[0]} color={value} pay={paid}"
    elif status == "pending":
        call = f"{toy_shop.CANCEL} order={number[0]} reason={value}"
    else:
        call = f"{toy_shop.RETURN} order={number[0]} reason={value} refund={paid}"
    yield Action(choice="answer", content=call)
    yield from _say(CLOSE)
    yield Action(choice="finish", content="")


def retail_expert(rng: random.Random, guess_rate: float) -> Expert:
    """Identifies the customer, then fulfils one wish after the other until it says goodbye. At `guess_rate`
    it guesses a wish's payment, reason or address."""
    identity = yield from _say("What is your name, your zip code and your email?")
    user_id = yield from _find_user(identity)
    user = yield from _look_up("get_user_details", user_id=user_id)
    wish = yield from _say("What can I do for you?")
    is_story = not _verb_of(wish)
    done: set[str] = set()
    while True:
        if is_story:  # the whole request in one piece: ask for its parts
            wish = yield from _say(DETAILS)
        if not _verb_of(wish) or wish in done:
            break
        done.add(wish)
        call = yield from _plan(wish, user_id, user, rng, guess_rate)
        yield from _say("I will do that now. Do you confirm, yes or no?")
        yield Action(choice="answer", content=json.dumps(call))
        if not is_story:
            wish = yield from _say(CLOSE)
    yield from _say(CLOSE)
    yield Action(choice="finish", content="")


def _plan(
    wish: str, user_id: str, user: dict[str, Any], rng: random.Random, guess_rate: float
) -> Generator[Action, str, dict[str, Any]]:
    """The call that fulfils a wish, after the necessary questions and look-ups."""
    name = _verb_of(wish)
    order_id = next(iter(re.findall(r"#W\d+", wish)), "")
    if name == "modify_user_address":
        address = yield from _address(user, rng, guess_rate)
        return {"name": name, "arguments": {"user_id": user_id, **address}}
    arguments: dict[str, Any] = {"order_id": order_id}
    if name == "cancel_pending_order":
        reply = yield from _ask("What is the reason?", rng, guess_rate)
        arguments["reason"] = reply.partition(": ")[2].rstrip(".") or rng.choice(
            ("no longer needed", "ordered by mistake")
        )
        return {"name": name, "arguments": arguments}
    if name == "modify_pending_order_address":
        address = yield from _address(user, rng, guess_rate)
        return {"name": name, "arguments": arguments | address}
    reply = yield from _ask(f"Which payment method, for order {order_id}?", rng, guess_rate)
    methods = re.findall(r"\b(?:credit_card|gift_card|paypal)_\d+", reply)
    method = methods[0] if methods else rng.choice(list(user.get("payment_methods", {})) or ["unknown"])
    if name != "modify_pending_order_payment":
        order = yield from _look_up("get_order_details", order_id=order_id)
        arguments |= yield from _items(wish, order)
    return {"name": name, "arguments": {**arguments, "payment_method_id": method}}


def _verb_of(wish: str) -> str:
    """The tool for a wish in the customer's fixed wording; empty for any other text."""
    said = wish.partition(" ")[2]
    return next((name for name, verb in VERBS.items() if said.startswith(verb)), "")


def _items(wish: str, order: dict[str, Any]) -> Generator[Action, str, dict[str, list[str]]]:
    """The ids of the items in a wish, and of the variants that shall replace them."""
    old_ids: list[str] = []
    new_ids: list[str] = []
    things = wish.partition(": ")[2].rstrip(".").split("; ")
    held = list(order.get("items", []))
    products: dict[str, dict[str, Any]] = {}
    for thing in things:
        old, _, new = thing.partition(") for ")
        item = next((item for item in held if label(item).startswith(old)), None)
        if item is None:
            continue
        held.remove(item)
        old_ids.append(item["item_id"])
        if new:
            product_id = item["product_id"]
            if product_id not in products:
                products[product_id] = yield from _look_up("get_product_details", product_id=product_id)
            variants = products[product_id].get("variants", {}).values()
            fitting = [one["item_id"] for one in variants if options_label(one) == new]
            new_ids += fitting[:1]
    return {"item_ids": old_ids, "new_item_ids": new_ids} if new_ids else {"item_ids": old_ids}


def _address(
    user: dict[str, Any], rng: random.Random, guess_rate: float
) -> Generator[Action, str, dict[str, str]]:
    """The address that the customer tells; at `guess_rate` the one in the shop's records."""
    reply = yield from _ask("What is the new address?", rng, guess_rate)
    if not reply:
        return {key: str(user.get("address", {}).get(key, "")) for key in ADDRESS}
    return {
        key: match.group(1).strip() if (match := re.search(rf"\b{key}: ([^;]*?)(?:;|\.$|$)", reply)) else ""
        for key in ADDRESS
    }


def _find_user(identity: str) -> Talk:
    email = re.search(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\w", identity)
    name = re.search(r"My name is (.+?)\.(?: |$)", identity)
    zip_code = re.search(r"\b\d{5}\b", identity)
    first, _, last = name.group(1).partition(" ") if name else ("", "", "")
    if email:
        arguments = {"email": email.group()}
        call = {"name": "find_user_id_by_email", "arguments": arguments}
    else:
        arguments = {"first_name": first, "last_name": last, "zip": zip_code.group() if zip_code else ""}
        call = {"name": "find_user_id_by_name_zip", "arguments": arguments}
    return (yield Action(choice="answer", content=json.dumps(call)))


def _look_up(name: str, **arguments: str) -> Generator[Action, str, dict[str, Any]]:
    text = yield Action(choice="answer", content=json.dumps({"name": name, "arguments": arguments}))
    return json.loads(text) if text.startswith("{") else {}


def _say(text: str) -> Talk:
    return (yield Action(choice="action", content=text))


def _ask(question: str, rng: random.Random, guess_rate: float) -> Talk:
    """The reply to a question; empty if the question is skipped, at `guess_rate`."""
    return "" if rng.random() < guess_rate else (yield from _say(question))
