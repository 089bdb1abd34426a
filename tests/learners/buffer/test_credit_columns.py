"""A step's credit table joined to archived rows: every turn gets its own numbers, or nulls."""

from typing import Any

import pyarrow as pa
import pytest

from learners.buffer.credit_columns import CREDITS, KEYS, with_credits


def rows_of(*turns: tuple[int, int, int]) -> pa.Table:
    """These (group, trajectory, turn), and a column of the archive's own."""
    columns: list[Any] = [list(column) for column in zip(*turns, strict=True)]
    table = pa.table(dict(zip(KEYS.names, columns, strict=True)), schema=KEYS)
    return table.append_column("text", pa.array([f"said {turn}" for turn in turns]))


def credits_of(*rows: tuple[tuple[int, int, int], float | None]) -> pa.Table:
    """A step's table: these turns with an advantage; the other numbers are the advantage's neighbours."""
    keys = [list(column) for column in zip(*(key for key, _ in rows), strict=True)]
    numbers = [number for _, number in rows]
    others = [[None if one is None else one + more for one in numbers] for more in (1.0, 2.0, 3.0)]
    return pa.table([*keys, numbers, *others], schema=pa.unify_schemas([KEYS, CREDITS]))


def test_each_turn_gets_its_own_numbers_in_any_order_of_the_groups():
    table = rows_of((4, 0, 0), (4, 0, 1), (4, 1, 0), (2, 0, 0), (9, 0, 0))
    credits = credits_of(
        ((9, 0, 0), 0.25), ((4, 0, 0), -1.0), ((4, 0, 1), None), ((4, 1, 0), 1.5), ((7, 0, 0), 8.0)
    )
    joined = with_credits(table, credits)
    assert joined.column_names == [*table.column_names, *CREDITS.names]
    assert joined.select(table.column_names).equals(table)
    assert joined["advantage"].to_pylist() == [-1.0, None, 1.5, None, 0.25]
    assert joined["value"].to_pylist() == [0.0, None, 2.5, None, 1.25]
    assert joined["credit"].to_pylist() == [1.0, None, 3.5, None, 2.25]
    assert joined["gain"].to_pylist() == [2.0, None, 4.5, None, 3.25]


@pytest.mark.parametrize("credits", [None, pa.unify_schemas([KEYS, CREDITS]).empty_table()])
def test_columns_of_groups_without_credits_are_null(credits: pa.Table | None):
    joined = with_credits(rows_of((1, 0, 0), (1, 0, 1)), credits)
    for field in CREDITS:
        assert joined.schema.field(field.name).type == pa.float32()
        assert joined[field.name].to_pylist() == [None, None]
    assert with_credits(rows_of((1, 0, 0)).slice(0, 0), credits).num_rows == 0


@pytest.mark.parametrize(
    "other",
    [
        [((4, 0, 0), 1.0)],
        [((4, 0, 0), 1.0), ((4, 1, 0), 1.0)],
        [((4, 0, 0), 1.0), ((4, 0, 1), 1.0), ((4, 0, 2), 1.0)],
    ],
)
def test_credits_of_other_turns_than_the_archived_ones_are_refused(other: list[Any]):
    with pytest.raises(ValueError, match=r"^group 4: the learner's turns differ from the archived ones$"):
        with_credits(rows_of((4, 0, 0), (4, 0, 1)), credits_of(*other))
