"""Syntax trees of source files, parsed once, for the tests that check the code itself."""

import ast
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """Raises SyntaxError. Parses again if another thread parsed at the same time, which CPython 3.11 reports
    as a SystemError (gh-106905)."""
    text = path.read_text(encoding="utf-8")
    for _ in range(9):
        with suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)
