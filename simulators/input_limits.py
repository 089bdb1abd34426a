"""Size and depth limits for untrusted text and files, applied before any parsing.

Readers of outside text take time linear in its length, and no parser reaches its recursion limit. All limits
and their uses: docs/safety.md.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_ACTION_CHARS = 16_000
"""An agent's text or call in one turn; a longer one is a lost turn."""
MAX_REPLY_CHARS = 16_000
"""A simulated user's reply; a longer one is a failure of the user."""
MAX_BODY_BYTES = 4 * 2**20
"""An HTTP response from outside; the rest is not read."""
MAX_DEPTH = 64
"""Nested objects and lists in JSON from outside."""
MAX_FILE_BYTES = 2**30
"""A file of tasks, records or tables that is read whole."""
STRING = r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'
"""A JSON string, or an unterminated one up to the end of the text: retried from every quote, a text of many
`\\"` would take quadratic time."""
STRING_OR_BRACKET = re.compile(rf"{STRING}|[{{}}\[\]]", re.DOTALL)


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can escape but no text can hold: it would break the tokenizer and every
table that stores it."""


def whole_characters(text: str) -> str:
    """The text with U+FFFD in place of each half of a character.

    Example: `whole_characters("cut \\ud83d")` is "cut \\ufffd"."""
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def depth_of(text: str, *, enough: int | None = None) -> int:
    """Nesting depth of the brackets in a JSON text, strings excluded. Stops reading beyond depth `enough`.

    Example: `depth_of('{"a": ["[", []]}')` is 3.
    """
    depth = deepest = 0
    for token in STRING_OR_BRACKET.finditer(text):
        bracket = token.group()
        if bracket in ("{", "["):
            depth += 1
            deepest = max(deepest, depth)
            if enough is not None and depth > enough:
                break
        elif bracket in ("}", "]"):
            depth -= 1
    return deepest


def load_json(text: str, *, max_chars: int = MAX_ACTION_CHARS, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text from outside. Raises only ValueError: too long, too deep or no JSON."""
    if len(text) > max_chars:
        raise ValueError(f"{len(text)} characters: at most {max_chars}")
    if depth_of(text, enough=max_depth) > max_depth:
        raise ValueError(f"nested too deeply: at most {max_depth} levels")
    return json.loads(text)


def json_leaves(value: Any) -> list[Any]:
    """All plain values in a JSON value at any depth, keys excluded; without recursion."""
    found: list[Any] = []
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, Mapping):
            rest.extend(item.values())
        elif isinstance(item, list | tuple):
            rest.extend(item)
        else:
            found.append(item)
    return found


def check_file_size(size: int, *, place: str, most: int = MAX_FILE_BYTES) -> None:
    """Raises ValueError, one line, if a file is too large to be read whole."""
    if size > most:
        raise ValueError(f"{place}: {size} bytes: at most {most} are read: give a smaller file, or several")
