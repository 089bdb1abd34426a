"""Size and depth limits for untrusted text and files, applied before any parsing.

A text here is data from outside. No reader of it takes time that grows faster than its length, and no parser
is driven into its recursion limit. All limits with their places: docs/safety.md.
"""

import json
import re
from typing import Any

MAX_ACTION_CHARS = 16_000
"""What an agent says or calls in one turn; longer ones are a lost turn."""
MAX_REPLY_CHARS = 16_000
"""What a simulated user says in one reply; a longer one is a failure of the user."""
MAX_BODY_BYTES = 4 * 2**20
"""An HTTP answer from outside; what follows is not read."""
MAX_DEPTH = 64
"""Objects and lists inside each other in JSON from outside."""
MAX_FILE_BYTES = 2**30
"""A file of tasks, records or tables that is read whole."""
STRING = r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'
"""A JSON string, or one that never ends, which takes the rest: tried from every quote instead, a text of
nothing but `\\"` would take time that grows with the square of its length."""
STRING_OR_BRACKET = re.compile(rf"{STRING}|[{{}}\[\]]", re.DOTALL)


def depth_of(text: str, *, enough: int | None = None) -> int:
    """How deep brackets stand inside each other in a JSON text, strings aside. Once it is deeper than
    `enough`, nothing more is read.

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
    """The value of a JSON text from outside. Raises ValueError, and nothing else, for one that is too long,
    too deep or no JSON."""
    if len(text) > max_chars:
        raise ValueError(f"{len(text)} characters: at most {max_chars}")
    if depth_of(text, enough=max_depth) > max_depth:
        raise ValueError(f"nested too deeply: at most {max_depth} levels")
    return json.loads(text)


def check_file_size(size: int, *, place: str, most: int = MAX_FILE_BYTES) -> None:
    """Raises ValueError, one line, for a file of more bytes than are read whole."""
    if size > most:
        raise ValueError(f"{place}: {size} bytes: at most {most} are read: give a smaller file, or several")
