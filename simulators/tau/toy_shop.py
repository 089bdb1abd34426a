"""Toy shop of the tau gym (level 0): numbered orders of one item each, learnable by a tiny policy.

The customer knows the order's number and what it wants; only the record shows whether the order can still be
cancelled, and how it was paid. Tools accept any word, so that a wrong guess is written and final.
"""

import random
from functools import cache

from simulators.tau.database import Database, Record, Tables
from simulators.tau.tools import TEXT, TRANSFER, Tool, ToolError, make_tool, transfer

ITEMS = ("lamp", "chair", "book", "clock", "coat", "desk", "phone", "radio")
COLORS = ("red", "blue", "green", "white", "black", "pink", "brown", "gold")
REASONS = ("late", "broken", "wrong", "ugly", "small", "large", "loud", "heavy")
METHODS = ("card", "bank", "cash", "coupon", "wallet", "check")
STATUSES = ("pending", "delivered")
NUMBERS = tuple(str(number) for number in range(10, 100))
NUM_STALLS = 60

ORDER = "order"
CANCEL = "cancel"
RETURN = "return"
EXCHANGE = "exchange"


@cache
def tables(source: str) -> Tables:
    """The orders of the stall that `source` numbers: one for each of `NUMBERS`."""
    rng = random.Random(f"stall-{source}")
    orders: dict[str, Record] = {
        number: {"item": rng.choice(ITEMS), "status": rng.choice(STATUSES), "paid": rng.choice(METHODS)}
        for number in NUMBERS
    }
    return {"orders": orders}


def get_order(database: Database, order: str) -> tuple[Database, str]:
    return database, _line(_find(database, order))


def cancel(database: Database, order: str, reason: str) -> tuple[Database, str]:
    record = _find(database, order, status="pending")
    return _written(database, order, {**record, "status": "cancelled", "reason": reason})


def send_back(database: Database, order: str, reason: str, refund: str) -> tuple[Database, str]:
    record = _find(database, order, status="delivered")
    return _written(database, order, {**record, "status": "returned", "reason": reason, "refund": refund})


def exchange(database: Database, order: str, color: str, pay: str) -> tuple[Database, str]:
    record = _find(database, order)
    if record["status"] not in STATUSES:
        raise ToolError(f"order is {record['status']}")
    return _written(database, order, {**record, "status": "exchanged", "color": color, "pay": pay})


def draw_wish(rng: random.Random, *, number: str, record: Record) -> Record:
    """The wish of this order's customer: the call that fulfils it, and the customer's words."""
    if rng.random() < 0.5:
        color = rng.choice(COLORS)
        arguments = {"order": number, "color": color, "pay": record["paid"]}
        return {"name": EXCHANGE, "arguments": arguments, "text": f"I want {color}.", "values": [color]}
    reason = rng.choice(REASONS)
    if record["status"] == "pending":
        name, arguments = CANCEL, {"order": number, "reason": reason}
    else:
        name, arguments = RETURN, {"order": number, "reason": reason, "refund": record["paid"]}
    text = f"Undo it because {reason}."
    return {"name": name, "arguments": arguments, "text": text, "values": [reason]}


def _find(database: Database, order: str, *, status: str = "") -> Record:
    record = database.find("orders", order)
    if record is None:
        raise ToolError("no such order")
    if status and record["status"] != status:
        raise ToolError(f"order is {record['status']}")
    return record


def _line(record: Record) -> str:
    return " ".join(f"{key}={value}" for key, value in record.items())


def _written(database: Database, order: str, record: Record) -> tuple[Database, str]:
    return database.put("orders", order, record), f"{record['status']}."


TOOLS: dict[str, Tool] = {
    ORDER: make_tool(get_order, "An order's item, status and payment.", order=TEXT),
    CANCEL: make_tool(cancel, "Cancels a pending order.", order=TEXT, reason=TEXT),
    RETURN: make_tool(
        send_back,
        "Takes a delivered order back; the refund goes to what paid.",
        order=TEXT,
        reason=TEXT,
        refund=TEXT,
    ),
    EXCHANGE: make_tool(
        exchange, "Exchanges for another color, paid as the order was.", order=TEXT, color=TEXT, pay=TEXT
    ),
    TRANSFER: make_tool(transfer, "Hands over to a human and ends.", summary=TEXT),
}
RULES = (
    "Small shop: `order order=N` shows an order. Not wanted: `cancel order=N reason=R` if pending, "
    "`return order=N reason=R refund=HOW_PAID` if delivered. "
    "Another color: `exchange order=N color=C pay=HOW_PAID`."
)
"""The shop's policy, part of the gym's system text."""
