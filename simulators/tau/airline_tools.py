"""Airline tools over the tables users, reservations and flights, with the effects of tau-bench's tools.

As in tau-bench, the agent must keep the policy's rules (cancellation, free bags); the tools check ids, seats
and payments only. A change of flights does not change the reservation's cabin field, as in the published
tools.
"""

import copy
import json

from simulators.tau.database import Database, Record
from simulators.tau.tools import ToolError, find_record

NOW = "2024-05-15T15:00:00"
BAG_PRICE = 50
INSURANCE_PRICE = 30
NEW_RESERVATIONS = ("HATHAT", "HATHAU", "HATHAV")
"""Ids of new reservations in a conversation, in order; the last is reused."""
NEW_CERTIFICATES = ("certificate_3221322", "certificate_3221323", "certificate_3221324")
CABINS = ("basic_economy", "economy", "business")


def get_user_details(database: Database, user_id: str) -> tuple[Database, str]:
    return database, json.dumps(find_record(database, "users", user_id))


def get_reservation_details(database: Database, reservation_id: str) -> tuple[Database, str]:
    return database, json.dumps(find_record(database, "reservations", reservation_id))


def book_reservation(
    database: Database,
    user_id: str,
    origin: str,
    destination: str,
    flight_type: str,
    cabin: str,
    flights: list[Record],
    passengers: list[Record],
    payment_methods: list[Record],
    total_baggages: int,
    nonfree_baggages: int,
    insurance: str,
) -> tuple[Database, str]:
    user = copy.deepcopy(find_record(database, "users", user_id))
    new_ids = [key for key in NEW_RESERVATIONS if database.find("reservations", key) is None]
    booked = [_priced(database, flight, cabin, len(passengers)) for flight in flights]
    price = sum(flight["price"] for flight in booked) * len(passengers) + BAG_PRICE * nonfree_baggages
    price += INSURANCE_PRICE * len(passengers) if insurance == "yes" else 0
    _take_payment(user, payment_methods, price)
    reservation = {
        "reservation_id": new_ids[0] if new_ids else NEW_RESERVATIONS[-1],
        "user_id": user_id,
        "origin": origin,
        "destination": destination,
        "flight_type": flight_type,
        "cabin": cabin,
        "flights": booked,
        "passengers": passengers,
        "payment_history": payment_methods,
        "created_at": NOW,
        "total_baggages": total_baggages,
        "nonfree_baggages": nonfree_baggages,
        "insurance": insurance,
    }
    user["reservations"].append(reservation["reservation_id"])
    return _written(database.put("users", user_id, user), reservation)


def cancel_reservation(database: Database, reservation_id: str) -> tuple[Database, str]:
    reservation = copy.deepcopy(find_record(database, "reservations", reservation_id))
    history = reservation["payment_history"]
    history += [{"payment_id": paid["payment_id"], "amount": -paid["amount"]} for paid in history]
    reservation["status"] = "cancelled"
    return _written(database, reservation)


def update_reservation_flights(
    database: Database, reservation_id: str, cabin: str, flights: list[Record], payment_id: str
) -> tuple[Database, str]:
    reservation = copy.deepcopy(find_record(database, "reservations", reservation_id))
    num_seats = len(reservation["passengers"])
    kept = {
        (flight["flight_number"], flight["date"]): flight
        for flight in reversed(reservation["flights"])
        if cabin == reservation["cabin"]
    }
    updated: list[Record] = []
    for flight in flights:
        old = kept.get((flight["flight_number"], flight["date"]))
        known = {key: old[key] for key in ("price", "origin", "destination")} if old else None
        updated.append({**flight, **known} if known else _priced(database, flight, cabin, num_seats))
    price = sum(flight["price"] for flight in updated) - sum(
        flight["price"] for flight in reservation["flights"]
    )
    database = _charge(database, reservation, payment_id, price * num_seats)
    reservation["flights"] = updated
    return _written(database, reservation)


def update_reservation_baggages(
    database: Database, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
) -> tuple[Database, str]:
    reservation = copy.deepcopy(find_record(database, "reservations", reservation_id))
    price = BAG_PRICE * max(0, nonfree_baggages - reservation["nonfree_baggages"])
    database = _charge(database, reservation, payment_id, price)
    reservation["total_baggages"] = total_baggages
    reservation["nonfree_baggages"] = nonfree_baggages
    return _written(database, reservation)


def update_reservation_passengers(
    database: Database, reservation_id: str, passengers: list[Record]
) -> tuple[Database, str]:
    reservation = copy.deepcopy(find_record(database, "reservations", reservation_id))
    if len(passengers) != len(reservation["passengers"]):
        raise ToolError("number of passengers does not match")
    reservation["passengers"] = passengers
    return _written(database, reservation)


def send_certificate(database: Database, user_id: str, amount: float) -> tuple[Database, str]:
    user = copy.deepcopy(find_record(database, "users", user_id))
    free = [key for key in NEW_CERTIFICATES if key not in user["payment_methods"]]
    if not free:
        raise ToolError("no more certificates can be sent")
    user["payment_methods"][free[0]] = {"source": "certificate", "amount": amount, "id": free[0]}
    text = f"Certificate {free[0]} added to user {user_id} with amount {amount}."
    return database.put("users", user_id, user), text


def _priced(database: Database, flight: Record, cabin: str, num_seats: int) -> Record:
    """The flight with price, origin and destination. Raises ToolError if it lacks the seats."""
    number, date = flight["flight_number"], flight["date"]
    known = database.find("flights", number)
    if known is None:
        raise ToolError(f"flight {number} not found")
    if date not in known["dates"]:
        raise ToolError(f"flight {number} not found on date {date}")
    day = known["dates"][date]
    if day["status"] != "available":
        raise ToolError(f"flight {number} not available on date {date}")
    if day["available_seats"][cabin] < num_seats:
        raise ToolError(f"not enough seats on flight {number}")
    ends = {key: known[key] for key in ("origin", "destination")}
    return {**flight, "price": day["prices"][cabin], **ends}


def _take_payment(user: Record, payments: list[Record], price: float) -> None:
    """Modifies `user`: reduces balances and removes used certificates."""
    methods = user["payment_methods"]
    for payment in payments:
        method = methods.get(payment["payment_id"])
        if method is None:
            raise ToolError(f"payment method {payment['payment_id']} not found")
        if method["source"] in ("gift_card", "certificate") and method["amount"] < payment["amount"]:
            raise ToolError(f"not enough balance in payment method {payment['payment_id']}")
    paid = sum(payment["amount"] for payment in payments)
    if paid != price:
        raise ToolError(f"payment amount does not add up, total price is {price}, but paid {paid}")
    for payment in payments:
        method = methods[payment["payment_id"]]
        if method["source"] == "gift_card":
            method["amount"] -= payment["amount"]
        elif method["source"] == "certificate":
            del methods[payment["payment_id"]]


def _charge(database: Database, reservation: Record, payment_id: str, price: float) -> Database:
    """Charges the price of a change, and adds it to `reservation`."""
    user = copy.deepcopy(find_record(database, "users", reservation["user_id"]))
    method = user["payment_methods"].get(payment_id)
    if method is None:
        raise ToolError("payment method not found")
    if method["source"] == "certificate":
        raise ToolError("certificate cannot be used to update reservation")
    if method["source"] == "gift_card":
        if method["amount"] < price:
            raise ToolError("gift card balance is not enough")
        method["amount"] -= price
        database = database.put("users", reservation["user_id"], user)
    if price:
        reservation["payment_history"].append({"payment_id": payment_id, "amount": price})
    return database


def _written(database: Database, reservation: Record) -> tuple[Database, str]:
    return database.put("reservations", reservation["reservation_id"], reservation), json.dumps(reservation)
