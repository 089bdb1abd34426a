"""The retail tools: effects computed by hand on a small shop."""

import json

import pytest

from simulators.tau.retail_tools import MODIFIED
from tests.simulators.tau.small_shop import CARD, GIFT, PAYPAL, USER, address, retail, run


def balance(database) -> float:
    return database.find("users", USER)["payment_methods"][GIFT]["balance"]


def test_cancelling_refunds_a_gift_card_at_once_and_notes_it():
    after, text = run(retail(), "cancel_pending_order", order_id="#W1", reason="no longer needed")
    order = json.loads(text)
    assert order == after.find("orders", "#W1")
    assert order["status"] == "cancelled" and order["cancel_reason"] == "no longer needed"
    assert [p["transaction_type"] for p in order["payment_history"]] == ["payment", "refund"]
    assert balance(after) == 60


def test_an_exchange_keeps_sorted_lists_and_the_rounded_difference_and_moves_no_money():
    after, text = run(
        retail(),
        "exchange_delivered_order_items",
        order_id="#W2",
        item_ids=["21", "21"],
        new_item_ids=["22", "21"],
        payment_method_id=GIFT,
    )
    order = json.loads(text)
    assert order["status"] == "exchange requested"
    assert order["exchange_new_items"] == ["21", "22"]
    assert order["exchange_price_difference"] == -5.0 and balance(after) == 50


def test_modified_items_are_paid_at_once_and_only_once():
    swap = {"order_id": "#W1", "item_ids": ["11"], "new_item_ids": ["12"], "payment_method_id": GIFT}
    after, text = run(retail(), "modify_pending_order_items", **swap)
    order = json.loads(text)
    assert order["status"] == MODIFIED and order["items"][0]["item_id"] == "12"
    assert order["payment_history"][-1] == {
        "transaction_type": "payment",
        "amount": 2.5,
        "payment_method_id": GIFT,
    }
    assert balance(after) == 47.5
    again, text = run(after, "modify_pending_order_items", **swap)
    assert text == "Error: non-pending order cannot be modified" and again == after


def test_a_new_payment_refunds_the_old_one():
    after, text = run(retail(), "modify_pending_order_payment", order_id="#W1", payment_method_id=PAYPAL)
    history = json.loads(text)["payment_history"]
    assert [(p["transaction_type"], p["payment_method_id"]) for p in history[1:]] == [
        ("payment", PAYPAL),
        ("refund", GIFT),
    ]
    assert balance(after) == 60


def test_a_return_is_refunded_as_paid_or_to_a_gift_card():
    wanted = {"order_id": "#W2", "item_ids": ["21"]}
    _, text = run(retail(), "return_delivered_order_items", **wanted, payment_method_id=PAYPAL)
    assert text.startswith("Error: payment method should be either")
    for method in (CARD, GIFT):
        after, text = run(retail(), "return_delivered_order_items", **wanted, payment_method_id=method)
        assert json.loads(text)["return_items"] == ["21"] and balance(after) == 50


def test_addresses_of_orders_and_users_change():
    new = address("2 Elm Street")
    after, _ = run(retail(), "modify_pending_order_address", order_id="#W1", **new)
    after, _ = run(after, "modify_user_address", user_id=USER, **new)
    order, user = after.find("orders", "#W1"), after.find("users", USER)
    assert order and user and order["address"] == new == user["address"]


def test_customers_are_found_in_any_case():
    assert run(retail(), "find_user_id_by_email", email="ANN.LEE1@example.com")[1] == USER
    found = run(retail(), "find_user_id_by_name_zip", first_name="ann", last_name="LEE", zip="10001")
    assert found[1] == USER
    assert run(retail(), "find_user_id_by_email", email="x")[1] == "Error: user not found"
    assert run(retail(), "list_all_product_types")[1] == '{"Cup": "100", "Hat": "200"}'


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("cancel_pending_order", {"order_id": "#W2", "reason": "no longer needed"}, "non-pending"),
        ("cancel_pending_order", {"order_id": "#W1", "reason": "whim"}, "reason: 'whim' is not one of"),
        ("cancel_pending_order", {"order_id": "#W1"}, "'reason' is a required property"),
        ("cancel_pending_order", {"order_id": 1, "reason": "no longer needed"}, "order_id: 1 is not of type"),
        ("cancel_pending_order", {"order_id": "#W3", "reason": "no longer needed"}, "order not found"),
        ("get_order_details", {"order_id": "#W1", "extra": 1}, "has no argument 'extra'"),
        (
            "modify_pending_order_payment",
            {"order_id": "#W1", "payment_method_id": GIFT},
            "should be different",
        ),
        ("modify_pending_order_payment", {"order_id": "#W1", "payment_method_id": "x"}, "method not found"),
    ],
)
def test_errors_name_the_fault_and_change_nothing(name: str, arguments: dict, error: str):
    before = retail()
    after, text = run(before, name, **arguments)
    assert text.startswith("Error: ") and error in text and after == before


@pytest.mark.parametrize(
    "old, new, method, error",
    [
        (["11"], ["13"], GIFT, "insufficient gift card balance"),
        (["11"], ["21"], CARD, "new item 21 not found or available"),
        (["11", "11"], ["12", "12"], CARD, "11 not found"),
        (["11"], [], CARD, "should match"),
    ],
)
def test_items_change_within_their_product_and_what_can_be_paid(old, new, method, error):
    swap = {"order_id": "#W1", "item_ids": old, "new_item_ids": new, "payment_method_id": method}
    assert error in run(retail(), "modify_pending_order_items", **swap)[1]


def test_what_is_out_of_stock_cannot_be_had():
    swap = {"order_id": "#W2", "item_ids": ["21"], "new_item_ids": ["23"], "payment_method_id": CARD}
    assert "23 not found or available" in run(retail(), "exchange_delivered_order_items", **swap)[1]
