"""The airline tools: small tables by hand, and hand-made tasks over the published database."""

import json
from pathlib import Path

import pytest

from simulators.gyms.tau import GYM
from simulators.tau.database import Database, Record
from simulators.tau.shop_registry import read_tables
from tests.simulators.tau.small_shop import DATA, gold_agent, needs_data, paid, play, run, userrl_row

BOB, CARD, GIFT, VOUCHER = "bob_ray_1", "credit_card_1", "gift_card_2", "certificate_3"
SEATS = {"basic_economy": 2, "economy": 2, "business": 1}
PRICES = {"basic_economy": 50, "economy": 100, "business": 300}
BOB_FLIES = [{"first_name": "Bob", "last_name": "Ray", "dob": "1990-01-01"}]
TRIP = {
    "user_id": BOB,
    "origin": "SFO",
    "destination": "JFK",
    "flight_type": "one_way",
    "cabin": "economy",
    "flights": [{"flight_number": "HAT1", "date": "2024-05-20"}],
    "passengers": BOB_FLIES,
    "total_baggages": 2,
    "nonfree_baggages": 1,
    "insurance": "yes",
}


def flight(number: str, origin: str, destination: str, leaves: str, lands: str, *days: str) -> Record:
    day = {"status": "available", "available_seats": SEATS, "prices": PRICES}
    return {
        "flight_number": number,
        "origin": origin,
        "destination": destination,
        "scheduled_departure_time_est": leaves,
        "scheduled_arrival_time_est": lands,
        "dates": {**dict.fromkeys(days, day), "2024-05-01": {"status": "landed"}},
    }


def airline() -> Database:
    methods = {
        CARD: {"source": "credit_card", "id": CARD},
        GIFT: {"source": "gift_card", "amount": 500, "id": GIFT},
        VOUCHER: {"source": "certificate", "amount": 100, "id": VOUCHER},
    }
    name = {"first_name": "Bob", "last_name": "Ray"}
    user = {"name": name, "email": "bob@example.com", "payment_methods": methods, "reservations": ["AAAAAA"]}
    booked = {
        "reservation_id": "AAAAAA",
        "user_id": BOB,
        "origin": "SFO",
        "destination": "JFK",
        "flight_type": "one_way",
        "cabin": "economy",
        "flights": [
            {
                "origin": "SFO",
                "destination": "JFK",
                "flight_number": "HAT1",
                "date": "2024-05-20",
                "price": 80,
            }
        ],
        "passengers": BOB_FLIES,
        "payment_history": [{"payment_id": GIFT, "amount": 80}],
        "created_at": "2024-05-02T03:10:19",
        "total_baggages": 1,
        "nonfree_baggages": 0,
        "insurance": "no",
    }
    flights = [
        flight("HAT1", "SFO", "JFK", "06:00:00", "12:00:00", "2024-05-20", "2024-05-21"),
        flight("HAT2", "SFO", "DEN", "06:00:00", "09:00:00", "2024-05-20"),
        flight("HAT3", "DEN", "JFK", "10:00:00", "14:00:00", "2024-05-20"),
        flight("HAT4", "DEN", "JFK", "08:00:00", "12:00:00", "2024-05-20"),
    ]
    return Database(
        tables={
            "users": {BOB: user},
            "reservations": {"AAAAAA": booked},
            "flights": {one["flight_number"]: one for one in flights},
        }
    )


def call(database: Database, name: str, **arguments) -> tuple[Database, str]:
    return run(database, name, domain="airline", **arguments)


def amount(database: Database) -> float:
    return database.find("users", BOB)["payment_methods"][GIFT]["amount"]  # type: ignore[index]


def test_searches_find_what_can_be_booked():
    route = {"origin": "SFO", "destination": "JFK", "date": "2024-05-20"}
    direct = json.loads(call(airline(), "search_direct_flight", **route)[1])
    assert [one["flight_number"] for one in direct] == ["HAT1"] and direct[0]["prices"] == PRICES
    assert "dates" not in direct[0]
    connections = json.loads(call(airline(), "search_onestop_flight", **route)[1])
    assert [[leg["flight_number"] for leg in pair] for pair in connections] == [["HAT2", "HAT3"]]
    assert json.loads(call(airline(), "search_direct_flight", **{**route, "date": "2024-05-01"})[1]) == []
    assert json.loads(call(airline(), "list_all_airports")[1])["JFK"] == "New York"


def test_a_booking_costs_seats_bags_and_insurance_and_uses_up_certificates():
    payments = [{"payment_id": VOUCHER, "amount": 100}, {"payment_id": GIFT, "amount": 80}]
    after, text = call(airline(), "book_reservation", **TRIP, payment_methods=payments)
    booked = json.loads(text)
    assert booked["reservation_id"] == "HATHAT" and booked["flights"][0]["price"] == 100
    assert booked["created_at"] == "2024-05-15T15:00:00" and amount(after) == 420
    user = after.find("users", BOB)
    assert user is not None
    assert VOUCHER not in user["payment_methods"] and user["reservations"] == ["AAAAAA", "HATHAT"]
    card = [{"payment_id": CARD, "amount": 180}]
    assert (
        json.loads(call(after, "book_reservation", **TRIP, payment_methods=card)[1])["reservation_id"]
        == "HATHAU"
    )


@pytest.mark.parametrize(
    "changed, error",
    [
        ({"payment_methods": [{"payment_id": CARD, "amount": 179}]}, "total price is 180, but paid 179"),
        ({"payment_methods": [{"payment_id": VOUCHER, "amount": 180}]}, "not enough balance"),
        ({"payment_methods": [{"payment_id": "x", "amount": 180}]}, "payment method x not found"),
        ({"flights": [{"flight_number": "HAT1", "date": "2024-05-01"}]}, "not available on date"),
        ({"flights": [{"flight_number": "HAT1", "date": "2024-06-01"}]}, "not found on date"),
        ({"flights": [{"flight_number": "HAT9", "date": "2024-05-20"}]}, "flight HAT9 not found"),
        ({"cabin": "business", "passengers": BOB_FLIES * 2}, "not enough seats"),
        ({"cabin": "first"}, "cabin: 'first' is not one of"),
        ({"user_id": "x"}, "user not found"),
    ],
)
def test_a_booking_that_does_not_fit_changes_nothing(changed: dict, error: str):
    before = airline()
    arguments = {**TRIP, "payment_methods": [{"payment_id": CARD, "amount": 180}], **changed}
    after, text = call(before, "book_reservation", **arguments)
    assert text.startswith("Error: ") and error in text and after == before


def test_flights_that_stay_keep_their_price_and_the_difference_is_paid():
    same = [{"flight_number": "HAT1", "date": "2024-05-20"}]
    later = [{"flight_number": "HAT1", "date": "2024-05-21"}]
    change = {"reservation_id": "AAAAAA", "cabin": "economy", "payment_id": GIFT}
    after, text = call(airline(), "update_reservation_flights", **change, flights=same)
    assert json.loads(text)["flights"][0]["price"] == 80 and amount(after) == 500
    after, text = call(airline(), "update_reservation_flights", **change, flights=later)
    assert (
        json.loads(text)["payment_history"][-1] == {"payment_id": GIFT, "amount": 20} and amount(after) == 480
    )
    text = call(airline(), "update_reservation_flights", **{**change, "payment_id": VOUCHER}, flights=later)[
        1
    ]
    assert text == "Error: certificate cannot be used to update reservation"


def test_bags_passengers_certificates_and_cancellations():
    bags = {"reservation_id": "AAAAAA", "total_baggages": 3, "nonfree_baggages": 2, "payment_id": GIFT}
    after, text = call(airline(), "update_reservation_baggages", **bags)
    assert json.loads(text)["payment_history"][-1]["amount"] == 100 and amount(after) == 400
    assert (
        "does not match"
        in call(after, "update_reservation_passengers", reservation_id="AAAAAA", passengers=[])[1]
    )
    after, text = call(after, "send_certificate", user_id=BOB, amount=50)
    assert text == "Certificate certificate_3221322 added to user bob_ray_1 with amount 50."
    after, text = call(after, "cancel_reservation", reservation_id="AAAAAA")
    assert json.loads(text)["status"] == "cancelled"
    assert [payment["amount"] for payment in json.loads(text)["payment_history"]] == [80, 100, -80, -100]


@needs_data
@pytest.mark.parametrize("name", ["cancel_reservation", "send_certificate", "none"])
async def test_hand_made_tasks_over_the_published_database_are_served(tmp_path: Path, name: str):
    (tmp_path / "tau").symlink_to(DATA / "tau")
    tables = read_tables(str(DATA / "tau" / "airline"), "airline")
    user_id, user = next((key, user) for key, user in tables["users"].items() if user["reservations"])
    arguments = {
        "cancel_reservation": {"reservation_id": user["reservations"][0]},
        "send_certificate": {"user_id": user_id, "amount": 100},
    }
    row = userrl_row(*([(name, arguments[name])] if name in arguments else []), task_id="airline-000")
    row["info"]["task"]["user_id"] = user_id
    row["info"]["task"]["instruction"] = f"Your user id is {user_id}. You want help with your trip."
    (tmp_path / "tau_test.json").write_text(json.dumps([row]))
    (task,) = GYM.load_tasks(tmp_path / "tau_test.json")
    assert "Airline Agent Policy" in task.opening and task.opening.endswith("Hi there, I need help.")
    assert paid(await play(task, gold_agent(task))) == 1
    assert paid(await play(task, ["[answer] transfer_to_human_agents summary=bye"])) == 0
    assert paid(await play(task, ["[finish]"])) == 0
