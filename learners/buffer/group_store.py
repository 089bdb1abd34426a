"""References to groups' tables in the object store: the groups of one batch share one table, and each is a
range of its rows."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.group_transport import read_group_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRows:
    """Reference to a group's table: rows of a shared table in the object store. Awaiting it gives the group's
    table."""

    ref: "ObjectRef[pa.Table]"
    first_row: int
    num_rows: int

    def of(self, table: pa.Table) -> pa.Table:
        """The group's rows of the shared table."""
        return table.slice(self.first_row, self.num_rows)

    def __await__(self) -> Generator[Any, None, pa.Table]:
        table = yield from self.ref.__await__()
        return self.of(table)


def rows_of(ref: "ObjectRef[pa.Table]", *, num_rows: Sequence[int]) -> list[GroupRows]:
    """The groups of one batch."""
    ends = accumulate(num_rows)
    return [
        GroupRows(ref=ref, first_row=end - num, num_rows=num) for num, end in zip(num_rows, ends, strict=True)
    ]


def fetch_groups(groups: Sequence[GroupRows], *, timeout_s: float) -> list[pa.Table]:
    """The groups' tables; each shared table is fetched once. Raises as `ray.get` does."""
    refs = list(dict.fromkeys(group.ref for group in groups))
    tables = dict(zip(refs, ray.get(refs, timeout=timeout_s), strict=True))
    return [group.of(tables[group.ref]) for group in groups]


class StoredRows:
    """Wrapper that puts a batch's bytes into the object store as they are; fetching gives a table."""

    def __init__(self, rows: pa.Buffer):
        self._rows = rows

    def __reduce__(self) -> tuple[Callable[[pa.Buffer], pa.Table], tuple[pa.Buffer]]:
        return read_group_batch, (self._rows,)
