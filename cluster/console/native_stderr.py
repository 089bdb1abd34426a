"""Capture of writes to file descriptor 2 that bypass Python (Ray's C++ logs), line by line."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TextIO


class NativeStderr:
    """While it lasts, `hear` gets each whole line that is written to the descriptor, on a thread of its own;
    `stream` is what it was before. Processes that are started meanwhile write into the same place."""

    def __init__(self, hear: Callable[[str], object]):
        self._hear = hear
        self._before = os.dup(2)
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        self.stream: TextIO = os.fdopen(
            os.dup(self._before), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
        self._thread = Thread(target=self._listen, args=(reading,), name="native stderr", daemon=True)
        self._thread.start()

    @staticmethod
    def is_stderr() -> bool:
        """Whether Python's stderr writes to descriptor 2, so it has not been replaced."""
        with suppress(OSError, ValueError):
            return sys.stderr.fileno() == 2
        return False

    def close(self) -> None:
        """Gives the descriptor back, after what was written to it."""
        os.dup2(self._before, 2)
        os.close(self._before)
        self._thread.join(timeout=0.5)  # a process that lives on may hold the other end

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                with suppress(OSError, ValueError):  # keep reading, so that writers never block
                    if line.strip():
                        self._hear(line.rstrip())
