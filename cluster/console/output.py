"""Output of a command: results on stdout, everything else on stderr in the form that `--quiet` and
`--log-format` select.

A closed stdout (`| head`) ends the command silently; a closed stderr does not end it.
"""

import argparse
import itertools
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.console.events import describe_error
from cluster.console.log import LOG, JsonHandler, LineHandler, drop_output, shown_by

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
EXIT_BROKEN_PIPE = 141
"""Exit code of a command that SIGPIPE ends: 128 + 13."""
LOG_FORMATS = ("text", "jsonl")


class ReaderGone(BaseException):
    """The reader of stdout has gone. Like KeyboardInterrupt not an `Exception`: no handler of failures may
    catch or retry it."""


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Adds `--quiet` and `--log-format`."""
    command.add_argument("--quiet", "-q", action="store_true", help="stderr shows faults and failures only")
    command.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="text",
        help="stderr as text for people (default), or as one JSON object a line",
    )


def with_output(words: Sequence[str], command: Callable[[], int]) -> int:
    """Runs a command with the output that its options ask for; returns the exit code."""
    is_quiet = "--quiet" in words or "-q" in words
    try:
        with shown_by(_choose_handler(is_quiet=is_quiet, is_jsonl=_wants_jsonl(words))):
            try:
                return command()
            finally:
                _flush()  # at its exit Python would print an error instead of raising one
    except ReaderGone:
        drop_output(sys.stdout)
        return EXIT_BROKEN_PIPE


def refuse(reason: str) -> int:
    """Logs why the input cannot run; returns the exit code."""
    LOG.error(reason)
    return EXIT_BAD_INPUT


def fail(error: Exception, *, log: Path) -> int:
    """Logs a failure in one line, and writes its traceback to a file; returns the exit code. Raises
    `ReaderGone` if the failure was a closed stdout."""
    if isinstance(error, BrokenPipeError):
        _flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)))
    LOG.critical(f"failed: {describe_error(error)} (traceback: {log})")
    return EXIT_FAILED


def put(text: str, *, end: str = "\n") -> None:
    """Writes a result to stdout and flushes it. Raises `ReaderGone`."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise ReaderGone from None


def put_json(result: object) -> None:
    """Writes a result as JSON, in one line if stderr has JSON lines, since a job's log merges both. Raises
    `ReaderGone`."""
    has_json_lines = any(isinstance(handler, JsonHandler) for handler in LOG.handlers)
    put(json.dumps(result, indent=None if has_json_lines else 2))


def result_console() -> "Console":
    """Rich console on stdout, for tables. Its `print` raises `ReaderGone`."""
    from rich.console import Console  # slow to import

    class ResultConsole(Console):
        def on_broken_pipe(self) -> None:
            raise ReaderGone

    return ResultConsole(highlight=False)


def _choose_handler(*, is_quiet: bool, is_jsonl: bool) -> LineHandler:
    """The handler for stderr, by the options and by whether stderr is a terminal."""
    if is_jsonl:
        return JsonHandler(logging.WARNING if is_quiet else logging.DEBUG)
    if not is_quiet and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from cluster.console.terminal import TerminalHandler  # imports rich

        return TerminalHandler()
    return LineHandler(logging.WARNING if is_quiet else logging.INFO)


def _wants_jsonl(words: Sequence[str]) -> bool:
    """Reads the option before arguments are parsed, since a refusal of the arguments is logged, too."""
    option = "--log-format"
    after = [value for word, value in itertools.pairwise(words) if word == option]
    return "jsonl" in after or f"{option}=jsonl" in words


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None
