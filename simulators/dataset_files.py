"""Reader of published dataset files (JSON lists, JSON objects, Parquet) into validated records.

Checks files, rows, fields and types; each gym interprets its own records.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulators.input_limits import check_file_size

Types = type | tuple[type, ...]
ENV_NAME = "reward_model.env_name"
"""Field of a released Parquet file that names a row's gym."""
MAX_CAUSE = 160
"""Characters of a parser's own error text in an error line."""
MISSING = object()


def read_records(
    path: Path, *, fields: Mapping[str, Types], where: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """All records of a file, each with the `fields` checked and added under their dotted names.

    Field names look inside by dots, list positions included: `reward_model.id`, `prompt.1.content`. A JSON
    object's keys become the field `key` of its records. A type tuple with NoneType lets a field be missing
    (it is then None); `float` takes integers too; `int` takes no booleans. `where` leaves out rows in which
    a field is present with another value: the merged files hold several gyms.

    Raises ValueError of one line with file, row (counted from 0), field and cure.

    Example: `read_records(path, fields={"id": str, "test_case": list})[0]["id"]` is `"func-1"`.
    """
    rows = [row for row in _rows(path) if _is_wanted(row, where or {})]
    if not rows:
        wanted = " and ".join(f"{name}={value!r}" for name, value in (where or {}).items())
        raise ValueError(f"data={path}: no record{f' with {wanted}' if wanted else ''}: give another file")
    return [_checked(path, row, number, fields) for number, row in enumerate(rows)]


def is_parquet(path: Path) -> bool:
    """Whether a file is, or by its name should be, a Parquet file."""
    if path.suffix == ".parquet":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False  # reading it raises with the reason


def wrong_record(path: Path, *, row: int, field: str, problem: str) -> ValueError:
    """The error of a record that a gym cannot use, for checks beyond types."""
    return ValueError(
        f"data={path}: row {row}: field {field!r} {problem}: give a file in the released form, "
        "or leave the path out to generate tasks"
    )


def _rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"data={path}: no such file: give the path of a JSON or Parquet file of tasks")
    check_file_size(path.stat().st_size, place=f"data={path}")
    if is_parquet(path):
        return _parquet_rows(path)
    try:
        content = _json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"data={path}: not readable as JSON ({_cause(error)}): give a whole file") from error
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        return [{**value, "key": key} if isinstance(value, dict) else value for key, value in content.items()]
    raise ValueError(
        f"data={path}: holds one {type(content).__name__}, not records: give a list or an object of them"
    )


def _json(text: str) -> Any:
    """One JSON value, or a list of them, one in each line."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise
        return [json.loads(line) for line in lines]


def _parquet_rows(path: Path) -> list[Any]:
    import pyarrow  # slow to import, and only these files need it
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        about = file.metadata
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        check_file_size(max(unpacked, about.num_rows), place=f"data={path}, unpacked")
        return file.read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"data={path}: not readable as Parquet ({_cause(error)}): give a whole file"
        ) from error


def _is_wanted(row: Any, where: Mapping[str, object]) -> bool:
    return all(_value_at(row, name) in (MISSING, value) for name, value in where.items())


def _checked(path: Path, row: Any, number: int, fields: Mapping[str, Types]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"data={path}: row {number}: is a {type(row).__name__}, not an object: give a file of records"
        )
    found = {name: _value_at(row, name) for name in fields}
    for name, types in fields.items():
        value = found[name]
        allowed = types if isinstance(types, tuple) else (types,)
        if value is MISSING and type(None) in allowed:
            found[name] = None
        elif value is MISSING:
            known = ", ".join(sorted(map(str, row)))
            raise wrong_record(
                path, row=number, field=name, problem=f"is missing (fields here: {known[:MAX_CAUSE]})"
            )
        elif not _fits(value, allowed):
            names = " or ".join(kind.__name__ for kind in allowed)
            raise wrong_record(
                path, row=number, field=name, problem=f"is a {type(value).__name__}, not {names}"
            )
    return {**row, **found}


def _value_at(row: Any, name: str) -> Any:
    """The value at a dotted path; MISSING if the path does not exist."""
    if isinstance(row, dict) and name in row:
        return row[name]
    head, _, rest = name.partition(".")
    if isinstance(row, dict):
        inside = row.get(head, MISSING)
    elif isinstance(row, list) and head.isdecimal() and int(head) < len(row):
        inside = row[int(head)]
    else:
        return MISSING
    return _value_at(inside, rest) if rest else inside


def _fits(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))


def _cause(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:MAX_CAUSE]
