"""Capture of file descriptor 2, line by line: Python's stderr, and what bypasses it (Ray's C++ logs)."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread, current_thread


class NativeStderr:
    """Until `close`, calls `handle` on a thread of its own with each line written to the descriptor.
    Processes started meanwhile inherit it. `stream` writes to what the descriptor was before."""

    def __init__(self, handle: Callable[[str], object]):
        self._handle = handle
        self.stream = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        self._thread = Thread(target=self._read, args=(reading,), name="native stderr", daemon=True)
        self._thread.start()

    @staticmethod
    def is_stderr() -> bool:
        """Whether Python's stderr writes to descriptor 2; False if it has been replaced."""
        with suppress(OSError, ValueError):
            return sys.stderr.fileno() == 2
        return False

    def close(self) -> None:
        """Restores the descriptor, and waits for the lines written so far."""
        sys.stderr.flush()
        os.dup2(self.stream.fileno(), 2)
        if current_thread() is not self._thread:
            self._thread.join(timeout=0.5)  # a child process may keep the other end open
        self.stream.close()

    def _read(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                with suppress(OSError, ValueError):  # keep reading, so that writers never block
                    if line.strip():
                        self._handle(line.rstrip())
