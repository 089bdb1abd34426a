"""Strict streaming reader of rows in a JSON list or JSON lines file. Anything ambiguous is refused with a
ValueError of one line: place, rule, cure."""

import json
import re
from collections.abc import Iterator, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, NoReturn, TextIO

PIECE = 2**18
"""Characters of a list that are read at a time; doubled until a longer row fits."""
MAX_ROW_CHARS = 2**24
"""Limit of one row, which is held in memory."""
MOST_DIGITS = 400
"""Limit of digits of a whole number; few JSON readers accept more."""
MOST_SHOWN = 40
FILE_FORM = "a file is one list of rows, or has one complete row per line"
_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(place, row) of each row. Reads the file once, in pieces."""
    found = False
    try:
        with path.open(encoding="utf-8-sig") as file:
            for place, row in _rows(file, path):
                found = True
                yield place, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): give a JSON or JSONL file") from None
    if not found:
        raise ValueError(f"{path}: has no row: give a list of dialogues, or one dialogue per line")


def strict_json(text: str, *, place: str, cure: str) -> Any:
    """The value of a JSON text. Raises ValueError."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        _refuse_json(error, place=place, cure=cure)


def refuse(place: str, rule: str, cure: str) -> NoReturn:
    """Raises ValueError with one line."""
    raise ValueError(f"{place}: {rule}: {cure}")


def short(value: object) -> str:
    """The value as JSON, shortened for messages."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _rows(file: TextIO, path: Path) -> Iterator[tuple[str, object]]:
    first = next((line for line in iter(lambda: file.readline(PIECE), "") if line.strip()), "")
    file.seek(0)
    if first.lstrip().startswith("["):
        yield from _items(file, path)
        return
    for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_CHARS + 1), ""), start=1):
        place = f"{path}: line {number}"
        if len(line) > MAX_ROW_CHARS:
            _refuse_long(place)
        if line.strip():
            yield place, strict_json(line, place=place, cure=FILE_FORM)


def _items(file: TextIO, path: Path) -> Iterator[tuple[str, object]]:
    """The items of a list, read in pieces that may end anywhere."""
    text, size, number = "", PIECE, 1
    while "[" not in text:
        text = file.read(PIECE)
    at = _skip(text, text.index("[") + 1)
    while True:
        place = f"{path}: row {number}"
        if number == 1 and text.startswith("]", at):
            break
        try:
            row, end = _DECODER.raw_decode(text, at)
            end = _skip(text, end)
            if end == len(text):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
        except (ValueError, RecursionError) as error:
            size *= 2
            if size > 2 * MAX_ROW_CHARS:
                _refuse_long(place)
            more = file.read(size) if isinstance(error, json.JSONDecodeError) else ""
            if not more:
                _refuse_json(error, place=place, cure=FILE_FORM, start=at)
            text = text[at:] + more
            at = _skip(text, 0)
            continue
        yield place, row
        if text[end] == "]":
            at = end
            break
        if text[end] != ",":
            refuse(place, f"not JSON ({text[end]!r} follows the row)", FILE_FORM)
        at, size, number = _skip(text, end + 1), PIECE, number + 1
    if _skip(text, at + 1) < len(text) or file.read().strip():
        refuse(str(path), "not JSON (something follows the list)", FILE_FORM)


def _refuse_long(place: str) -> NoReturn:
    refuse(place, f"more than {MAX_ROW_CHARS} characters", "give shorter dialogues")


def _skip(text: str, at: int) -> int:
    """The position after white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _refuse_json(error: Exception, *, place: str, cure: str, start: int = 0) -> NoReturn:
    """`start`: position of the value in the text."""
    if isinstance(error, json.JSONDecodeError):
        refuse(place, f"not JSON ({error.msg} at character {error.pos - start})", cure)
    if isinstance(error, RecursionError):
        refuse(place, "not JSON (nested too deeply)", cure)
    raise ValueError(f"{place}: {error}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {name!r} occurs twice in one object: keep one")
        if not _is_number_or_other(value):
            raise ValueError(
                f"the field {name!r} holds NaN, an infinity or a number of more than {MOST_DIGITS} digits: "
                "give a finite number, or text"
            )
        found[name] = value
    return found


def _is_number_or_other(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_number_or_other, value))
    return not isinstance(value, float) or isfinite(value)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= MOST_DIGITS else inf


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
