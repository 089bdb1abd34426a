"""Credit columns of the archive (advantage, value, credit, gain of each turn), and the join from a step's
credit table to archived rows. Arrow only; docs/credit.md explains the numbers."""

import numpy as np
import pyarrow as pa

KEYS = pa.schema([("group_id", pa.int64()), ("trajectory", pa.int32()), ("turn", pa.int32())])
"""The turn of a row. The rows of a group are adjacent, in the order of the group's table."""
CREDITS = pa.schema([(name, pa.float32()) for name in ("advantage", "value", "credit", "gain")])
"""Null on every turn of a trajectory that the step did not train on.

advantage: the policy loss's, for the turn's tokens. value: the critic's, before the turn; null without one.
credit: the turn's reward under the gym's rule, before any comparison. gain: the information gain of the
turn's feedback; null if it has none. """


def with_credits(table: pa.Table, credits: pa.Table | None) -> pa.Table:
    """The rows of whole groups with the columns of `CREDITS` from a step's credit table, null for groups that
    are not in it. Raises ValueError if its rows of a group are not those of `table`."""
    known = {} if credits is None else {group_id: span for group_id, *span in _spans(credits)}
    parts: list[pa.Table] = []
    for group_id, first, end in _spans(table):
        if credits is None or group_id not in known:
            parts.append(_nulls(end - first))
            continue
        begin, stop = known[group_id]
        part = credits.slice(begin, stop - begin)
        if not part.select(KEYS.names).equals(table.select(KEYS.names).slice(first, end - first)):
            raise ValueError(f"group {group_id}: the learner's turns differ from the archived ones")
        parts.append(part.select(CREDITS.names))
    columns = pa.concat_tables(parts) if parts else CREDITS.empty_table()
    for field in CREDITS:
        table = table.append_column(field, columns[field.name])
    return table


def _spans(table: pa.Table) -> list[tuple[int, int, int]]:  # [num_groups]
    """(group id, first row, row after the last)."""
    ids = table["group_id"].to_numpy()
    firsts = np.flatnonzero(np.diff(ids, prepend=-1))
    ends = [*firsts.tolist(), len(ids)][1:]
    return list(zip(ids[firsts].tolist(), firsts.tolist(), ends, strict=True))


def _nulls(num_rows: int) -> pa.Table:
    return pa.table([pa.nulls(num_rows, field.type) for field in CREDITS], schema=CREDITS)
