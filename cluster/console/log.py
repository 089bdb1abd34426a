"""The `userrl` logger of this process, and its handlers for stderr: plain lines or JSON lines. `terminal.py`
has the one with bars.

Levels: `BARS_ONLY` and DEBUG for progress (DEBUG in JSON, too), INFO for lines, WARNING and above for what a
quiet command shows, too. stdout is never written here.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TextIO

from cluster.console.events import printable, to_json
from cluster.console.native_stderr import NativeStderr

BARS_ONLY = 5
"""Level of progress that is too frequent for a log."""
CLOSED = (OSError, ValueError)
"""Errors of a closed pipe, terminal or file."""
LOG = logging.getLogger("userrl")
LOG.setLevel(BARS_ONLY)
LOG.propagate = False
_LOCK = RLock()
info = LOG.info
"""Logs one line for people."""
warn = LOG.warning
"""Logs a fault and what is done about it. `userrl status` shows the last ones."""


class LogHandler(logging.Handler):
    """Base of all handlers. They share one reentrant lock, since some log while they handle a record."""

    def createLock(self) -> None:
        self.lock = _LOCK  # type: ignore[assignment]  # typeshed: not reentrant


class LineHandler(LogHandler):
    """Writes one plain line per record to stderr. If the reader of stderr has gone, the work continues."""

    def __init__(self, level: int = logging.INFO):
        super().__init__(level)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.show(record)
        except CLOSED:
            self.setLevel(logging.CRITICAL + 1)
            with suppress(*CLOSED):
                self.close()
            drop_output(sys.stderr)

    def show(self, record: logging.LogRecord) -> None:
        print(printable(record.getMessage()), file=sys.stderr, flush=True)


class JsonHandler(LineHandler):
    """Writes one JSON object per record (docs/terminal.md). Until `close`, each line that this process or its
    children write to file descriptor 2 becomes such an object, too."""

    def __init__(self, level: int = logging.DEBUG):
        super().__init__(level)
        self._native = NativeStderr(self._show_native) if NativeStderr.is_stderr() else None

    def show(self, record: logging.LogRecord) -> None:
        line = to_json(record.msg, at=record.created, level=record.levelno)
        print(line, file=self._native.stream if self._native else sys.stderr, flush=True)

    def close(self) -> None:
        native, self._native = self._native, None
        if native:
            native.close()
        super().close()

    def _show_native(self, line: str) -> None:
        if self.level <= logging.INFO:
            self.handle(LOG.makeRecord(LOG.name, logging.INFO, "", 0, line, (), None))


LOG.addHandler(LineHandler())  # of a process that is no command: a worker, a test


@contextmanager
def shown_by(handler: LineHandler) -> Iterator[None]:
    """Inside the block this is the handler for stderr; closes it at the end."""
    replaced = [one for one in LOG.handlers if isinstance(one, LineHandler)]
    LOG.handlers = [*(one for one in LOG.handlers if one not in replaced), handler]
    try:
        yield
    finally:
        LOG.handlers = [*(one for one in LOG.handlers if one is not handler), *replaced]
        with suppress(*CLOSED):
            handler.close()


@contextmanager
def logged_to(handler: logging.Handler) -> Iterator[None]:
    """Inside the block this handler gets every record, too."""
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)


def drop_output(stream: TextIO) -> None:
    """Redirects a stream without a reader, and what is left in its buffer, to /dev/null: otherwise Python
    would complain at its end."""
    with suppress(*CLOSED):  # a replacement in a test has no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
