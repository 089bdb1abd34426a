"""Tool definitions of the retail shop and the airline with JSON schemas; names and arguments are
tau-bench's."""

from collections.abc import Mapping
from typing import Any

from simulators.tau import airline_tools, flight_schedule, retail_tools
from simulators.tau.tools import TEXT, TRANSFER, Tool, calculate, make_tool, think, transfer

TEXTS = {"type": "array", "items": TEXT}
INTEGER = {"type": "integer"}

COMMON_TOOLS: dict[str, Tool] = {
    "calculate": make_tool(
        calculate, "Value of an expression of numbers, + - * / and parentheses.", expression=TEXT
    ),
    "think": make_tool(think, "A note to yourself; changes nothing.", thought=TEXT),
    TRANSFER: make_tool(
        transfer,
        "Hands the customer to a human and ends the conversation. Only where no tool can help.",
        summary=TEXT,
    ),
}


def _rows(**properties: Any) -> dict[str, Any]:
    row = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "array", "items": row}


_WHERE: Mapping[str, Any] = dict.fromkeys(retail_tools.ADDRESS, TEXT)
_SWAP: Mapping[str, Any] = {
    "order_id": TEXT,
    "item_ids": TEXTS,
    "new_item_ids": TEXTS,
    "payment_method_id": TEXT,
}

RETAIL_TOOLS: dict[str, Tool] = COMMON_TOOLS | {
    "find_user_id_by_email": make_tool(
        retail_tools.find_user_id_by_email, "The user id behind an email address.", email=TEXT
    ),
    "find_user_id_by_name_zip": make_tool(
        retail_tools.find_user_id_by_name_zip,
        "The user id behind a name and a zip code.",
        first_name=TEXT,
        last_name=TEXT,
        zip=TEXT,
    ),
    "get_user_details": make_tool(
        retail_tools.get_user_details, "A user's profile, payment methods, orders.", user_id=TEXT
    ),
    "get_order_details": make_tool(
        retail_tools.get_order_details, "An order's items, payments, status. Ids start with #.", order_id=TEXT
    ),
    "get_product_details": make_tool(
        retail_tools.get_product_details, "A product's variants: item ids, options, prices.", product_id=TEXT
    ),
    "list_all_product_types": make_tool(
        retail_tools.list_all_product_types, "All products: name to product id."
    ),
    "cancel_pending_order": make_tool(
        retail_tools.cancel_pending_order,
        "Cancels a pending order and refunds it.",
        order_id=TEXT,
        reason={"type": "string", "enum": list(retail_tools.REASONS)},
    ),
    "return_delivered_order_items": make_tool(
        retail_tools.return_delivered_order_items,
        "Requests the return of items of a delivered order; refund to the method that paid or a gift card.",
        order_id=TEXT,
        item_ids=TEXTS,
        payment_method_id=TEXT,
    ),
    "exchange_delivered_order_items": make_tool(
        retail_tools.exchange_delivered_order_items,
        "Requests the exchange of items of a delivered order, position by position; once an order.",
        **_SWAP,
    ),
    "modify_pending_order_items": make_tool(
        retail_tools.modify_pending_order_items,
        "Changes items of a pending order to other variants, position by position; once an order.",
        **_SWAP,
    ),
    "modify_pending_order_payment": make_tool(
        retail_tools.modify_pending_order_payment,
        "Changes how a pending order is paid.",
        order_id=TEXT,
        payment_method_id=TEXT,
    ),
    "modify_pending_order_address": make_tool(
        retail_tools.modify_pending_order_address,
        "Changes where a pending order is sent.",
        order_id=TEXT,
        **_WHERE,
    ),
    "modify_user_address": make_tool(
        retail_tools.modify_user_address, "Changes a user's default address.", user_id=TEXT, **_WHERE
    ),
}
"""Every tool of the retail shop."""

_CABIN = {"type": "string", "enum": list(airline_tools.CABINS)}
_FLIGHTS = _rows(flight_number=TEXT, date=TEXT)
_PASSENGERS = _rows(first_name=TEXT, last_name=TEXT, dob=TEXT)
_ROUTE = {"origin": TEXT, "destination": TEXT, "date": TEXT}

AIRLINE_TOOLS: dict[str, Tool] = COMMON_TOOLS | {
    "get_user_details": make_tool(
        airline_tools.get_user_details, "A user's profile, payment methods, reservations.", user_id=TEXT
    ),
    "get_reservation_details": make_tool(
        airline_tools.get_reservation_details,
        "A reservation's flights, passengers, payments.",
        reservation_id=TEXT,
    ),
    "list_all_airports": make_tool(flight_schedule.list_all_airports, "All airports: code to city."),
    "search_direct_flight": make_tool(
        flight_schedule.search_direct_flight,
        "Direct flights of a day (YYYY-MM-DD) that can be booked.",
        **_ROUTE,
    ),
    "search_onestop_flight": make_tool(
        flight_schedule.search_onestop_flight, "Connections with one stop that can be booked.", **_ROUTE
    ),
    "book_reservation": make_tool(
        airline_tools.book_reservation,
        "Books a trip; the payments must add up to its price.",
        user_id=TEXT,
        origin=TEXT,
        destination=TEXT,
        flight_type={"type": "string", "enum": ["one_way", "round_trip"]},
        cabin=_CABIN,
        flights=_FLIGHTS,
        passengers=_PASSENGERS,
        payment_methods=_rows(payment_id=TEXT, amount={"type": "number"}),
        total_baggages=INTEGER,
        nonfree_baggages=INTEGER,
        insurance={"type": "string", "enum": ["yes", "no"]},
    ),
    "cancel_reservation": make_tool(
        airline_tools.cancel_reservation, "Cancels a whole reservation.", reservation_id=TEXT
    ),
    "update_reservation_flights": make_tool(
        airline_tools.update_reservation_flights,
        "Replaces all flights of a reservation: name those that stay, too.",
        reservation_id=TEXT,
        cabin=_CABIN,
        flights=_FLIGHTS,
        payment_id=TEXT,
    ),
    "update_reservation_baggages": make_tool(
        airline_tools.update_reservation_baggages,
        "Sets the bags of a reservation.",
        reservation_id=TEXT,
        total_baggages=INTEGER,
        nonfree_baggages=INTEGER,
        payment_id=TEXT,
    ),
    "update_reservation_passengers": make_tool(
        airline_tools.update_reservation_passengers,
        "Replaces the passengers of a reservation; their number stays.",
        reservation_id=TEXT,
        passengers=_PASSENGERS,
    ),
    "send_certificate": make_tool(
        airline_tools.send_certificate,
        "Gives a user a travel certificate.",
        user_id=TEXT,
        amount={"type": "number"},
    ),
}
"""Every tool of the airline."""
