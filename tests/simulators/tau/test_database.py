"""The copy-on-write database: immutable, and equal by content."""

from simulators.tau.database import Database
from tests.simulators.tau.small_shop import retail


def test_a_write_leaves_the_old_view_and_the_shared_tables_alone():
    before = retail()
    after = before.put("orders", "#W9", {"status": "new"})
    assert before.find("orders", "#W9") is None and after.find("orders", "#W9") == {"status": "new"}
    assert list(before.tables["orders"]) == ["#W1", "#W2"]
    assert [key for key, _ in after.rows("orders")] == ["#W1", "#W2", "#W9"]


def test_the_hash_sees_contents_and_not_the_way_there():
    tables = {"a": {"x": {"n": 1, "m": 2}, "y": {"n": 3}}}
    fresh = Database(tables=tables)
    there_and_back = fresh.put("a", "x", {"n": 5}).put("a", "x", {"m": 2, "n": 1})
    assert there_and_back.state_hash() == fresh.state_hash()
    one = fresh.put("a", "x", {"n": 5}).put("a", "y", {"n": 6})
    other = fresh.put("a", "y", {"n": 6}).put("a", "x", {"n": 5})
    assert one.state_hash() == other.state_hash() != fresh.state_hash()
    assert fresh.put("a", "x", {"n": 1, "m": [2]}).state_hash() != fresh.state_hash()


def test_lists_in_another_order_are_another_state():
    fresh = Database(tables={"a": {"x": {"ids": ["1", "2"]}}})
    assert fresh.put("a", "x", {"ids": ["2", "1"]}).state_hash() != fresh.state_hash()
