"""Copy-on-write database: shared tables plus an overlay of changed records, so states are immutable, small
and cheap to compare."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
"""One JSON record. The records of the tables are shared: tools copy before they write."""
Tables = Mapping[str, Mapping[str, Record]]
"""Table name to key to record, e.g. `tables["orders"]["#W2611340"]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Database:
    """An immutable view: the original tables, and every record written since."""

    tables: Tables
    changes: Mapping[tuple[str, str], Record] = field(default_factory=dict)
    """(table, key) to the present record."""

    def find(self, table: str, key: str) -> Record | None:
        """The present record, read-only; None if there is none."""
        return self.changes.get((table, key)) or self.tables[table].get(key)

    def rows(self, table: str) -> Iterator[tuple[str, Record]]:
        """All records of a table, in the table's order, new ones last."""
        for key, record in self.tables[table].items():
            yield key, self.changes.get((table, key), record)
        for (changed, key), record in self.changes.items():
            if changed == table and key not in self.tables[table]:
                yield key, record

    def put(self, table: str, key: str, record: Record) -> "Database":
        """The database with one record written."""
        return Database(tables=self.tables, changes={**self.changes, (table, key): record})

    def state_hash(self) -> str:
        """SHA-256 of the records that differ from the tables: equal for equal contents, independent of
        the order of writes. Numbers are compared as written: 5 and 5.0 differ, as in the published grade."""
        written = [
            [table, key, record]
            for (table, key), record in sorted(self.changes.items(), key=lambda change: change[0])
            if _canonical(record) != _canonical(self.tables[table].get(key))
        ]
        return hashlib.sha256(_canonical(written).encode()).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
