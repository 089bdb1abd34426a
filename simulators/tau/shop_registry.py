"""Registry of the tau domains (tools and tables by name), and access to a task's database, generated or read
from a folder."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from simulators.input_limits import check_file_size
from simulators.tau import generated_shop, toy_shop
from simulators.tau.database import Database, Record, Tables
from simulators.tau.tool_schemas import AIRLINE_TOOLS, RETAIL_TOOLS
from simulators.tau.tools import Tool

TOOLS: Mapping[str, Mapping[str, Tool]] = {
    "stall": toy_shop.TOOLS,
    "retail": RETAIL_TOOLS,
    "airline": AIRLINE_TOOLS,
}
"""Domain to its tools."""
TABLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "retail": {
        "users": ("name", "address", "email", "payment_methods", "orders"),
        "orders": ("order_id", "user_id", "items", "status", "payment_history"),
        "products": ("name", "product_id", "variants"),
    },
    "airline": {
        "users": ("name", "email", "payment_methods", "reservations", "membership"),
        "reservations": ("reservation_id", "user_id", "flights", "passengers", "payment_history"),
        "flights": ("flight_number", "origin", "destination", "dates"),
    },
}
"""Domain to table to the fields that every record must have."""


def open_database(scenario: Mapping[str, Any]) -> Database:
    """A task's database before its first turn."""
    domain, source = scenario["domain"], scenario["source"]
    if domain == "stall":
        return Database(tables=toy_shop.tables(source))
    return Database(tables=read_tables(source, domain) if source else generated_shop.tables())


@cache
def read_tables(folder: str, domain: str) -> Tables:
    """The tables in a folder: one file each (`users.json`, ...), or all in `db.json`. Raises ValueError with
    file, record, field and cure."""
    together = Path(folder) / "db.json"
    if together.is_file():
        content = _read(together)
        files: dict[str, tuple[Path, Any]] = {
            table: (together, content.get(table)) for table in TABLES[domain]
        }
    else:
        paths = {table: Path(folder) / f"{table}.json" for table in TABLES[domain]}
        files = {table: (path, _read(path)) for table, path in paths.items()}
    for table, (path, records) in files.items():
        if not isinstance(records, dict) or not records:
            raise ValueError(f"data={path}: has no table {table!r}: give an object of records")
        for key, record in records.items():
            _check(path, table, key, record, domain)
    return {table: records for table, (_, records) in files.items()}


def _check(path: Path, table: str, key: str, record: Record, domain: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"data={path}: row {key!r} of {table} is no object: give the released database")
    for field in TABLES[domain][table]:
        if field not in record:
            raise ValueError(
                f"data={path}: row {key!r} of {table}: field {field!r} is missing: give the released database"
            )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"data={path}: no such file: put the shop's database next to the tasks or in a folder tau/"
        )
    check_file_size(path.stat().st_size, place=f"data={path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"data={path}: not readable as JSON ({str(error)[:120]}): give a whole file"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"data={path}: holds a {type(content).__name__}: give an object of records")
    return content
