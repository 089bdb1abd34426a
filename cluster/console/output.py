"""Setup of a command's stdout and stderr: results on stdout, everything else on stderr, in the form that
`--quiet` and `--log-format` ask for.

A closed stdout (`| head`) ends the command silently; a closed stderr ends nothing.
"""

import argparse
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.console.event_bus import AUDIENCE, to_nowhere
from cluster.console.events import LogLine, first_line
from cluster.console.screens import JsonScreen, choose_screen

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
EXIT_BROKEN_PIPE = 141
"""As of a command that SIGPIPE ended: 128 + 13."""
LOG_FORMATS = ("text", "jsonl")


class ReaderGone(BaseException):
    """The reader of stdout has gone. Like KeyboardInterrupt no failure, and nothing to wait out or to try
    again."""


def add_output_options(command: argparse.ArgumentParser) -> None:
    """What pipes ask of a command that tells much."""
    command.add_argument("--quiet", "-q", action="store_true", help="stderr has nothing but what went wrong")
    command.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="text",
        help="stderr as text for people (default), or as one JSON object a line",
    )


def with_output(words: Sequence[str], command: Callable[[], int]) -> int:
    """Runs a command with the output that its options ask for; returns the exit code."""
    is_quiet = "--quiet" in words or "-q" in words
    screen = choose_screen(is_quiet=is_quiet, is_jsonl=_wants_jsonl(words))
    try:
        with AUDIENCE.watching(screen):
            try:
                return command()
            finally:
                _flush()  # here, since Python would only complain
    except ReaderGone:
        to_nowhere(sys.stdout)
        return EXIT_BROKEN_PIPE


def refuse(reason: str) -> int:
    """Tells why what a person wrote cannot run; the exit code."""
    AUDIENCE.tell(LogLine(text=reason, kind="refused"))
    return EXIT_BAD_INPUT


def fail(error: Exception, *, log: Path) -> int:
    """Tells of a failure in one line, and writes the rest into a file; the exit code. Raises `ReaderGone`
    where that is all it was."""
    if isinstance(error, BrokenPipeError):
        _flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)))
    text = f"failed: {type(error).__name__}: {first_line(error)} (traceback: {log})"
    AUDIENCE.tell(LogLine(text=text, kind="failed"))
    return EXIT_FAILED


def put(text: str, *, end: str = "\n") -> None:
    """Writes a result to stdout, at once. Raises `ReaderGone`."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise ReaderGone from None


def put_json(result: object) -> None:
    """Writes a result as JSON, in one line where stderr has JSON lines: in a job's log both stand together.
    Raises `ReaderGone`."""
    put(json.dumps(result, indent=None if AUDIENCE.is_shown_by(JsonScreen) else 2))


def result_console() -> "Console":
    """Rich's console on stdout, for tables. It raises `ReaderGone`."""
    from rich.console import Console  # `--help` needs none

    class ResultConsole(Console):
        def on_broken_pipe(self) -> None:
            raise ReaderGone

    return ResultConsole(highlight=False)


def _wants_jsonl(words: Sequence[str]) -> bool:
    """Before the words are parsed: a refusal of them is a line, too."""
    option = "--log-format"
    after = [value for word, value in itertools.pairwise(words) if word == option]
    return "jsonl" in after or f"{option}=jsonl" in words


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None
