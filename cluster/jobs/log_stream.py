"""Stream of a job's log to the submitter's terminal: raw, sorted into results and progress, or suppressed.

Ray merges a job's stdout and stderr into one log, so only JSON lines can be told apart.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

from cluster.console.events import IMPORTANT, RelayedLine
from cluster.console.log import LOG, info
from cluster.console.output import put

Write = Callable[[str], object]
"""Writes the parts of a log in order; raises `ReaderGone` if stdout is closed."""


def log_writer(*, is_quiet: bool, is_jsonl: bool) -> Write:
    """Where a job's log goes."""
    if is_jsonl:
        return SortedLog()
    return _drop if is_quiet else put_part


def put_part(text: str) -> None:
    """Writes a part of a log to stdout."""
    put(text, end="")


def _drop(text: str) -> None:
    """A quiet submission tells how the job ended, and nothing before."""


class SortedLog:
    """Splits a log of JSON lines: results go to stdout, events and all other lines to the log."""

    def __init__(self) -> None:
        self._begun = ""

    def __call__(self, text: str) -> None:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            self._sort(line)

    def _sort(self, line: str) -> None:
        try:
            said: Any = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            info(line)
        elif "event" in said:
            level = logging.WARNING if said["event"] in IMPORTANT else logging.INFO
            LOG.log(level, RelayedLine(line=line))
        else:
            put(line)
