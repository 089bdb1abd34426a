"""Event bus of the process: delivers events to the active screen and, in a run, to the log in the run folder.
Thread-safe."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from cluster.console.events import Event, Listener
from cluster.console.screens import Screen, choose_screen

GONE = (OSError, ValueError)
"""What a closed pipe, terminal or file raises."""


class EventBus:
    """The listeners of this process."""

    def __init__(self) -> None:
        self._screen: Screen | None = None
        self._others: list[Listener] = []
        self._lock = threading.RLock()  # a signal's handler tells in the middle of another telling

    def tell(self, event: Event) -> None:
        """Delivers the event to all listeners, one event at a time."""
        with self._lock:
            for other in self._others:
                other.hear(event)
            if self._screen is None:
                self._screen = choose_screen(is_quiet=False, is_jsonl=False)
            try:
                self._screen.hear(event)
            except OSError:  # a closed pipe or terminal: the reader has gone, the work continues
                with suppress(*GONE):
                    self._screen.close()
                self._screen = NullListener()
                to_nowhere(sys.stderr)
            except ValueError:  # stderr is closed: no reader is left
                return

    def is_shown_by(self, kind: type[Screen]) -> bool:
        """Whether the screen is of this kind."""
        return isinstance(self._screen, kind)

    @contextmanager
    def watching(self, screen: Screen) -> Iterator[None]:
        """While it lasts, this is the screen."""
        before, self._screen = self._screen, screen
        try:
            yield
        finally:
            self._screen = before
            with suppress(*GONE):
                screen.close()

    @contextmanager
    def joined_by(self, listener: Listener) -> Iterator[None]:
        """While it lasts, this one hears everything, too."""
        self._others.append(listener)
        try:
            yield
        finally:
            self._others.remove(listener)


class NullListener:
    """In the place of a screen that has gone."""

    def hear(self, event: Event) -> None:
        """Listener that ignores all events."""

    def close(self) -> None:
        """Nothing is open."""


def to_nowhere(stream: TextIO) -> None:
    """What is still written to a stream without a reader, and what waits in its buffer, is dropped in
    silence; so it is when Python ends."""
    with suppress(*GONE):  # one that tests have put there has no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


AUDIENCE = EventBus()
