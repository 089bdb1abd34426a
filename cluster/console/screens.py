"""Renderers of stderr: plain lines, JSON lines, or problems only; a terminal's bars are in `terminal.py`.
stdout is never written here."""

import os
import sys
from threading import RLock
from typing import Protocol, TextIO, cast

from cluster.console.events import (
    IMPORTANT,
    Event,
    LogLine,
    RelayedLine,
    StageProgress,
    StepFinished,
    WaitReason,
    printable,
    stage_line,
    to_json,
)
from cluster.console.native_stderr import NativeStderr

SPARSE_LINES = 10
"""Lines of a stage where there is no terminal."""
JSON_EVERY_S = 1.0
"""Least time between two JSON lines of one stage."""


class Screen(Protocol):
    """One way of showing."""

    def hear(self, event: Event) -> None: ...

    def close(self) -> None: ...


class PlainScreen:
    """Lines, as a log file wants them."""

    def __init__(self) -> None:
        self._num_lines: dict[str, int] = {}
        """By running stage."""

    def hear(self, event: Event) -> None:
        if isinstance(event, LogLine | StepFinished):
            _write(printable(event.text))
        elif isinstance(event, StageProgress):
            self._stage(event)

    def close(self) -> None:
        """Nothing is open."""

    def _stage(self, stage: StageProgress) -> None:
        number = stage.done * SPARSE_LINES // max(stage.total, 1)
        if number > self._num_lines.get(stage.stage, 0):
            self._num_lines[stage.stage] = number
            _write(stage_line(stage))
        if stage.is_over:
            self._num_lines.pop(stage.stage, None)


class QuietScreen:
    """Only what a person has to know: troubles, refusals, failures."""

    def hear(self, event: Event) -> None:
        if isinstance(event, LogLine) and event.kind in IMPORTANT:
            _write(printable(event.text))

    def close(self) -> None:
        """Nothing is open."""


class JsonScreen:
    """One JSON object a line, for programs: docs/terminal.md. What others write to stderr becomes a line of
    it, too."""

    def __init__(self, *, is_quiet: bool):
        self._is_quiet = is_quiet
        self._shown_at: dict[str, float] = {}
        """When each running stage was last shown."""
        self._waits = False
        self._lock = RLock()
        self._before = sys.stderr
        self._native = NativeStderr(self._hear_native) if NativeStderr.is_stderr() else None
        self._plain = self._native.stream if self._native else self._before
        self._stray = StrayLines(self)
        sys.stderr = cast("TextIO", self._stray)

    def hear(self, event: Event) -> None:
        with self._lock:
            if self._is_wanted(event):
                _write(to_json(event), to=self._plain)

    def close(self) -> None:
        """Gives stderr back, with what stands on it without an end."""
        self._stray.end()
        if sys.stderr is self._stray:
            sys.stderr = self._before
        if self._native:
            self._native.close()

    def _hear_native(self, line: str) -> None:
        self.hear(LogLine(text=line))

    def _is_wanted(self, event: Event) -> bool:
        if self._is_quiet:
            return _is_important(event)
        if isinstance(event, WaitReason):
            is_news = bool(event.text) or self._waits
            self._waits = bool(event.text)
            return is_news
        if isinstance(event, StageProgress):
            before = self._shown_at.get(event.stage)
            if not event.is_over and before is not None and event.at - before < JSON_EVERY_S:
                return False
            self._shown_at[event.stage] = event.at
            if event.is_over:
                del self._shown_at[event.stage]
        return True


class StrayLines:
    """Stands for stderr: whole lines that are written to it, by a library or as a warning, become events."""

    def __init__(self, screen: JsonScreen):
        self._screen = screen
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._screen.hear(LogLine(text=line.rstrip()))
        return len(text)

    def end(self) -> None:
        """What is written has no more to come."""
        if self._begun.strip():
            self.write("\n")

    def flush(self) -> None:
        """Each line is written when it is whole."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._screen._plain, name)


def _is_important(event: Event) -> bool:
    return isinstance(event, LogLine | RelayedLine) and event.kind in IMPORTANT


def choose_screen(*, is_quiet: bool, is_jsonl: bool) -> Screen:
    """By what was asked for, and by what stderr is."""
    if is_jsonl:
        return JsonScreen(is_quiet=is_quiet)
    if is_quiet:
        return QuietScreen()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from cluster.console.terminal import TerminalScreen  # rich, where it is of use

        return TerminalScreen()
    return PlainScreen()


def _write(line: str, *, to: TextIO | None = None) -> None:
    print(line, file=to or sys.stderr, flush=True)
