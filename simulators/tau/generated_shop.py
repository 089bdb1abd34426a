"""Generated retail shop of the tau gym (levels 1 and 2), in the record format of the published databases."""

import random
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

from simulators.tau.database import Database, Record, Tables
from simulators.tau.retail_tools import REASONS
from simulators.tau.tool_schemas import RETAIL_TOOLS
from simulators.tau.tools import TauToolCall, run_call

FIRST_NAMES = (
    *("Ada", "Ben", "Cora", "Dan", "Ella", "Finn", "Gina", "Hugo", "Iris", "Jack"),
    *("Kira", "Leo", "Mona", "Nils"),
)
LAST_NAMES = (
    *("Adler", "Baker", "Costa", "Dubois", "Engel", "Fischer", "Garcia", "Haddad"),
    *("Ivanov", "Jensen", "Kumar"),
)
STREETS = ("Oak Street", "Hill Road", "Lake Avenue", "Mill Lane", "Park Drive", "Elm Street")
PLACES = (("Austin", "TX"), ("Boston", "MA"), ("Denver", "CO"), ("Miami", "FL"), ("Seattle", "WA"))
PRODUCTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Desk Lamp": {"color": ("black", "white", "silver"), "power": ("battery", "cable")},
    "Backpack": {"color": ("grey", "green", "navy"), "size": ("small", "medium", "large")},
    "Headphones": {"color": ("black", "blue", "red"), "type": ("in-ear", "over-ear")},
    "Water Bottle": {"color": ("red", "blue", "clear"), "capacity": ("500ml", "750ml", "1000ml")},
    "T-Shirt": {"color": ("white", "black", "purple"), "size": ("S", "M", "L", "XL")},
    "Office Chair": {"color": ("black", "grey"), "armrest": ("fixed", "adjustable", "none")},
    "Notebook": {"size": ("A4", "A5", "A6"), "cover": ("hard", "soft")},
    "Tea Kettle": {"material": ("glass", "steel", "ceramic"), "capacity": ("1 liter", "2 liters")},
    "Wall Clock": {"shape": ("round", "square"), "color": ("white", "wood", "gold")},
    "Garden Hose": {"length": ("10m", "20m", "30m"), "color": ("green", "yellow")},
}
NUM_USERS = 800
POLICY = (
    "Find out who the customer is (email, or name and zip code) before anything else, and serve nobody else. "
    "Pending orders can be cancelled (reason: no longer needed, or ordered by mistake) or modified (items, "
    "payment, address); delivered orders can be returned or exchanged. Items change only to available "
    "variants of the same product, once an order, all in one call. A refund goes to the method that paid or "
    "a gift card; a gift card must cover what it pays. Before a change, say what you will do and get a yes."
)
"""The generated shop's policy; shown in the opening."""


@cache
def tables(source: str = "") -> Tables:
    """The whole shop, the same in every process."""
    rng = random.Random("retail-shop")
    ids = iter(rng.sample(range(1_000_000, 10_000_000), NUM_USERS * 8))
    products = _draw_products(rng)
    users: dict[str, Record] = {}
    orders: dict[str, Record] = {}
    while len(users) < NUM_USERS:
        first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
        user_id = f"{first}_{last}_{rng.randint(1000, 9999)}".lower()
        if user_id in users:
            continue
        methods = _draw_methods(rng, ids)
        user = {
            "name": {"first_name": first, "last_name": last},
            "address": draw_address(rng),
            "email": f"{first}.{last}{rng.randint(1000, 9999)}@example.com".lower(),
            "payment_methods": methods,
            "orders": [],
        }
        users[user_id] = user
        for status in ("pending", "delivered", rng.choice(("pending", "delivered", "processed"))):
            order = _draw_order(rng, f"#W{next(ids)}", user_id=user_id, user=user, products=products)
            orders[order["order_id"]] = {**order, "status": status}
            user["orders"].append(order["order_id"])
    return {"users": users, "orders": orders, "products": products}


def draw_address(rng: random.Random) -> Record:
    city, state = rng.choice(PLACES)
    return {
        "address1": f"{rng.randint(100, 999)} {rng.choice(STREETS)}",
        "address2": f"Suite {rng.randint(100, 999)}",
        "city": city,
        "country": "USA",
        "state": state,
        "zip": str(rng.randint(10_000, 99_999)),
    }


def draw_calls(rng: random.Random, user_id: str, *, num_wishes: int) -> list[Record]:
    """Calls that fulfil a customer's wishes, one for each of `num_wishes` orders; all of them succeed."""
    database = Database(tables=tables())
    user = tables()["users"][user_id]
    calls: list[Record] = []
    for order_id in rng.sample(user["orders"], len(user["orders"])):
        order = tables()["orders"][order_id]
        if len(calls) == num_wishes or order["status"] == "processed":
            continue
        while True:
            name, arguments = _draw_call(rng, order, user)
            after, text = run_call(database, TauToolCall(name=name, arguments=arguments), RETAIL_TOOLS)
            if not text.startswith("Error"):
                break
        database = after
        calls.append({"name": name, "arguments": arguments})
    return calls


def _draw_call(rng: random.Random, order: Record, user: Record) -> tuple[str, dict[str, Any]]:
    order_id = order["order_id"]
    method = rng.choice(list(user["payment_methods"]))
    items = rng.sample(order["items"], rng.randint(1, len(order["items"])))
    item_ids = [item["item_id"] for item in items]
    swap = {
        "order_id": order_id,
        "item_ids": item_ids,
        "new_item_ids": [_other_variant(rng, item) for item in items],
        "payment_method_id": method,
    }
    if order["status"] == "delivered":
        back = {"order_id": order_id, "item_ids": item_ids, "payment_method_id": method}
        if rng.random() < 0.5:
            return "return_delivered_order_items", back
        return "exchange_delivered_order_items", swap
    kind = rng.choice(("cancel", "items", "payment", "address"))
    if kind == "cancel":
        return "cancel_pending_order", {"order_id": order_id, "reason": rng.choice(REASONS)}
    if kind == "payment":
        return "modify_pending_order_payment", {"order_id": order_id, "payment_method_id": method}
    if kind == "address":
        return "modify_pending_order_address", {"order_id": order_id, **draw_address(rng)}
    return "modify_pending_order_items", swap


def _other_variant(rng: random.Random, item: Record) -> str:
    variants = tables()["products"][item["product_id"]]["variants"].values()
    return rng.choice([v["item_id"] for v in variants if v["available"] and v["item_id"] != item["item_id"]])


def _draw_products(rng: random.Random) -> dict[str, Record]:
    ids = iter(rng.sample(range(1_000_000_000, 10_000_000_000), 500))
    products: dict[str, Record] = {}
    for name, options in PRODUCTS.items():
        variants: dict[str, Record] = {}
        for number, values in enumerate(product(*options.values())):
            item_id = str(next(ids))
            variants[item_id] = {
                "item_id": item_id,
                "options": dict(zip(options, values, strict=True)),
                "available": number < 2 or rng.random() < 0.8,
                "price": round(rng.uniform(20, 120), 2),
            }
        product_id = str(next(ids))
        products[product_id] = {"name": name, "product_id": product_id, "variants": variants}
    return products


def _draw_methods(rng: random.Random, ids: Any) -> dict[str, Record]:
    """Two to four payment methods, so that none can be guessed."""
    others = ("gift_card", "credit_card", "credit_card", "gift_card")
    sources = [rng.choice(("credit_card", "paypal")), *rng.sample(others, rng.randint(1, 3))]
    methods: dict[str, Record] = {}
    for source in sources:
        method: Record = {"source": source, "id": f"{source}_{next(ids)}"}
        if source == "gift_card":
            method["balance"] = rng.randint(50, 400)
        elif source == "credit_card":
            method |= {"brand": rng.choice(("visa", "mastercard")), "last_four": str(rng.randint(1000, 9999))}
        methods[method["id"]] = method
    return methods


def _draw_order(
    rng: random.Random, order_id: str, *, user_id: str, user: Record, products: Mapping[str, Record]
) -> Record:
    items = [
        {
            "name": kind["name"],
            "product_id": kind["product_id"],
            **{key: variant[key] for key in ("item_id", "price", "options")},
        }
        for kind in rng.sample(list(products.values()), rng.randint(1, 3))
        for variant in [rng.choice(list(kind["variants"].values()))]
    ]
    payment = {
        "transaction_type": "payment",
        "amount": round(sum(item["price"] for item in items), 2),
        "payment_method_id": rng.choice(list(user["payment_methods"])),
    }
    return {
        "order_id": order_id,
        "user_id": user_id,
        "address": user["address"],
        "items": items,
        "fulfillments": [],
        "payment_history": [payment],
    }
