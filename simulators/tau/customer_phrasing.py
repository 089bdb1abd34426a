"""Wording of a customer's wishes: a tool call as a request in plain words, without ids that only the shop
knows.

Payment, reason and address are left out: a good agent asks for them. The scripted expert identifies the items
of a wish by the same labels, in generated and published tasks.
"""

from collections.abc import Mapping
from typing import Any

from simulators.tau.database import Database, Record
from simulators.tau.retail_tools import ADDRESS

VERBS = {
    "cancel_pending_order": "cancel",
    "return_delivered_order_items": "return",
    "exchange_delivered_order_items": "exchange",
    "modify_pending_order_items": "modify",
    "modify_pending_order_payment": "change the payment of",
    "modify_pending_order_address": "change the address of",
    "modify_user_address": "change my default address",
}
"""Retail tool to the verb of its wish; the expert recognises wishes by it, too."""
PAYMENT_KEYS = ("payment_method_id", "payment_id", "payment_methods")
QUIET_KEYS = (*PAYMENT_KEYS, "reason", *ADDRESS, "summary", "user_id")
"""Arguments that a wish does not mention."""


def label(item: Mapping[str, Any]) -> str:
    """An item in a customer's words: `Desk Lamp (color black, power cable)`."""
    return f"{item['name']} {options_label(item)}"


def options_label(item: Mapping[str, Any]) -> str:
    return f"({', '.join(f'{key} {value}' for key, value in item['options'].items())})"


def make_wish(database: Database, name: str, arguments: Mapping[str, Any]) -> Record:
    """The wish for a tool call: the call, its text, and the values in which a persona makes no typos."""
    verb = VERBS.get(name)
    if verb is None:
        text, values = _plain(name, arguments)
    elif name == "modify_user_address":
        text, values = f"Please {verb}.", [verb]
    else:
        text, values = _retail(database, name, arguments)
    return {"name": name, "arguments": dict(arguments), "text": text, "values": values}


def detail_of(wish: Mapping[str, Any], slot: str) -> tuple[str, list[str]]:
    """The customer's reply to a question for payment, reason or address, with its values; empty if this wish
    has none."""
    arguments = wish["arguments"]
    if slot == "payment":
        given = next((arguments[key] for key in PAYMENT_KEYS if key in arguments), None)
        if isinstance(given, list):
            parts = [f"{part['payment_id']} for {part['amount']}" for part in given]
            return (f"Use {' and '.join(parts)}.", parts) if parts else ("", [])
        return (f"Use {given}.", [str(given)]) if given else ("", [])
    if slot == "reason" and "reason" in arguments:
        return f"The reason: {arguments['reason']}.", [arguments["reason"]]
    if slot == "address" and "address1" in arguments:
        parts = [f"{key}: {arguments[key]}" for key in ADDRESS]
        return f"It is {'; '.join(parts)}.", parts
    return "", []


def _retail(database: Database, name: str, arguments: Mapping[str, Any]) -> tuple[str, list[str]]:
    verb, order_id = VERBS[name], arguments["order_id"]
    items = _items(database, order_id, arguments.get("item_ids", []))
    labels = [label(item) for item in items]
    new_ids = arguments.get("new_item_ids", [])
    news = [
        options_label(_variant(database, item["product_id"], new_id))
        for item, new_id in zip(items, new_ids, strict=False)
    ]
    if not labels:
        noun = "order " if verb == "cancel" else ""
        return f"Please {verb} {noun}{order_id}.", [verb, order_id]
    things = [f"{old} for {new}" for old, new in zip(labels, news, strict=True)] if news else labels
    return f"Please {verb} in order {order_id}: {'; '.join(things)}.", [verb, order_id, *things]


def _items(database: Database, order_id: str, item_ids: list[str]) -> list[Record]:
    order = database.find("orders", order_id) or {"items": []}
    held = {item["item_id"]: item for item in order["items"]}
    return [held[item_id] for item_id in item_ids if item_id in held]


def _variant(database: Database, product_id: str, item_id: str) -> Record:
    product = database.find("products", product_id) or {"variants": {}}
    return product["variants"].get(item_id) or {"options": {"item": item_id}}


def _plain(name: str, arguments: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Any other tool: its name in words and its arguments."""
    told = [
        f"{key.replace('_', ' ')} {_words(value)}"
        for key, value in arguments.items()
        if key not in QUIET_KEYS
    ]
    verb = name.replace("_", " ")
    return f"Please {verb}{': ' + '; '.join(told) if told else ''}.", [verb, *told]


def _words(value: object) -> str:
    if isinstance(value, list):
        return " and ".join(_words(part) for part in value)
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values())
    return str(value)
