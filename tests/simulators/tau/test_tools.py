"""Tool calls of tau: all text forms, errors without effect, safe arithmetic, published schemas."""

import json

import pytest

from simulators.tau.shop_registry import TOOLS
from simulators.tau.tools import TauToolCall, ToolError, list_tools, parse_call, run_call
from tests.simulators.tau.small_shop import DATA, needs_data, retail

RETAIL = TOOLS["retail"]
WANTED = {"order_id": "#W1", "item_ids": ["1", "2"]}


def value_of(expression: str) -> str:
    return run_call(retail(), TauToolCall(name="calculate", arguments={"expression": expression}), RETAIL)[1]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "return_delivered_order_items", "arguments": {"order_id": "#W1", "item_ids": ["1", "2"]}}',
        json.dumps({"name": "return_delivered_order_items", "arguments": json.dumps(WANTED)}),
        'return_delivered_order_items {"order_id": "#W1", "item_ids": ["1", "2"]}',
        'return_delivered_order_items: {"order_id": "#W1", "item_ids": ["1", "2"]}',
        "return_delivered_order_items order_id=#W1 item_ids=1,2",
        'return_delivered_order_items order_id="#W1", item_ids=["1", "2"]',
    ],
)
def test_all_forms_of_a_call_are_the_same_call(text: str):
    call = parse_call(text, RETAIL)
    assert call.name == "return_delivered_order_items"
    assert call.arguments == WANTED


def test_terse_values_have_the_types_that_the_tool_wants():
    text = (
        "update_reservation_baggages reservation_id=123456 total_baggages=3 nonfree_baggages=0 payment_id=x"
    )
    assert parse_call(text, TOOLS["airline"]).arguments == {
        "reservation_id": "123456",
        "total_baggages": 3,
        "nonfree_baggages": 0,
        "payment_id": "x",
    }
    assert parse_call('{"name": "x", "arguments": {"n": 5.0}}', RETAIL).arguments == {"n": 5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "{",
        "[]",
        '{"name": 3, "arguments": {}}',
        '{"name": "think", "arguments": []}',
        '{"name": "think", "arguments": {"thought": NaN}}',
        '{"name": "think", "arguments": {"thought": 1e999}}',
        '{"name": "think", "arguments": {"thought": ' + "9" * 5000 + "}}",
        '{"name": "think", "arguments": {"thought": ' + "[" * 150 + "}}",
        "[" * 100_000,
        '{"name": "think", "arguments": {}} {"name": "think", "arguments": {}}',
        "think thought",
        "x" * 20_000,
    ],
)
def test_what_is_no_call_is_refused_with_a_cure(text: str):
    with pytest.raises(ToolError):
        parse_call(text, RETAIL)


@pytest.mark.parametrize(
    "expression, value",
    [("2 + 3 * 4", "14.0"), ("(10 - 4) / 4", "1.5"), ("-(1.005 + 2)", "-3.0"), ("0.1+0.2", "0.3")],
)
def test_arithmetic_is_computed_to_cents(expression: str, value: str):
    assert value_of(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["2 ** 99", "1 / 0", "__import__('os')", "9" * 199, "(" * 150, "", "1,2", "7 // 2", "1 2", "9" * 400],
)
def test_nothing_else_is_computed(expression: str):
    text = value_of(expression)
    assert text.startswith("Error: ") or float(text) < 1e200


def test_unknown_tools_are_said_to_be_unknown():
    before = retail()
    assert run_call(before, TauToolCall(name="rob", arguments={}), RETAIL) == (before, "Unknown action rob")


def test_unchecked_arguments_do_no_harm():
    """The published rules call tools without checking arguments first."""
    strange = [None, 3, -1.5, "x", [], {}, [1], {"a": 1}, [[]], [{"flight_number": []}], True]
    for domain in ("retail", "airline"):
        tables = {name: {} for name in ("users", "orders", "products", "reservations", "flights")}
        database = type(retail())(tables=tables)
        for name, tool in TOOLS[domain].items():
            for value in strange:
                call = TauToolCall(name=name, arguments=dict.fromkeys(tool.properties, value))
                assert isinstance(run_call(database, call, TOOLS[domain], validated=False)[1], str)
            text = run_call(
                database, TauToolCall(name=name, arguments={"none": 1}), TOOLS[domain], validated=False
            )[1]
            assert text.startswith("Error: ")


@needs_data
def test_names_and_schemas_are_those_of_the_published_signatures():
    published = json.loads((DATA / "tau" / "tool_signatures.json").read_text())
    for domain in ("retail", "airline"):
        ours = {name: tool.schema() for name, tool in TOOLS[domain].items()}
        assert ours == published[domain]


def test_the_list_shows_every_schema_in_full():
    rows = [json.loads(line) for line in list_tools(RETAIL).splitlines()]
    assert [row["name"] for row in rows] == list(RETAIL)
    assert all(row["description"] and row["parameters"]["type"] == "object" for row in rows)
