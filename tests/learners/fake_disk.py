"""A disk that a test can switch off at any operation, and what a crash may leave of it."""

import errno
import os
import random
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from learners.buffer.log.segments import LogDisk
from learners.buffer.log.write_ahead_log import WriteAheadLog

BLOCK = 16
"""Bytes that reach the disk together or not at all, in whatever order; small, so that each entry has
several."""


class CrashingDisk(LogDisk):
    """The real disk under a folder, which knows what of it is synced. From operation `dies_at` on nothing
    reaches it; `full_at` names operations that fail as a full disk's do, half done."""

    def __init__(
        self,
        *,
        dies_at: int | None = None,
        full_at: frozenset[int] = frozenset(),
        synced: dict[Path, int] | None = None,
    ):
        self.synced = synced or {}
        """Bytes of each file that are safe; `synced`: as a process knows that was killed on this disk."""
        self.num_operations = 0
        self._dies_at = dies_at
        self._full_at = full_at

    def create(self, path: Path) -> BinaryIO:
        self._operate()
        file = super().create(path)
        self.synced[path] = 0
        return file

    def write(self, file: BinaryIO, part: bytes | pa.Buffer) -> None:
        try:
            self._operate()
        except OSError:
            super().write(file, memoryview(part)[: len(part) // 2].tobytes())
            raise
        super().write(file, part)

    def sync(self, file: BinaryIO) -> None:
        self._operate()
        self.synced[Path(file.name)] = os.path.getsize(file.name)

    def sync_path(self, path: Path) -> None:
        self._operate()
        self.synced[path] = path.stat().st_size

    def sync_folder(self, path: Path) -> None:
        """Nothing to do: here a name is safe as soon as it is there."""

    def delete(self, path: Path) -> None:
        self._operate()
        super().delete(path)

    def lose_power(self, rng: random.Random) -> None:
        """The machine loses its power: of every file stays what was synced, and of the rest a part, in which
        any blocks may never have reached the disk."""
        for path, safe in self.synced.items():
            if not path.exists():
                continue
            content = bytearray(path.read_bytes())
            end = safe + rng.randint(0, len(content) - safe)
            for start in range(safe, end, BLOCK):
                if rng.random() < 0.5:
                    stop = min(start + BLOCK, end)
                    content[start:stop] = bytes(stop - start)
            left = path.with_suffix(".left")  # another file: who died has this one in its memory
            left.write_bytes(content[:end])
            left.replace(path)
        self.synced = {}

    @property
    def is_dead(self) -> bool:
        return self._dies_at is not None and self.num_operations >= self._dies_at

    def _operate(self) -> None:
        number, dead = self.num_operations, self.is_dead
        self.num_operations += 1
        if dead:
            raise OSError(errno.EIO, "the power is off")
        if number in self._full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FillingDisk(LogDisk):
    """The real disk, full while it is told to be."""

    is_full = False

    def write(self, file: BinaryIO, part: bytes | pa.Buffer) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(file, part)


class InlineLog(WriteAheadLog):
    """Writes when it is told to, in the thread of the test: a crash comes where the test wants it."""

    def __init__(self, folder: Path, *, disk: CrashingDisk, segment_bytes: int):
        super().__init__(folder, disk=disk, segment_bytes=segment_bytes)
        self._crashing = disk

    def write(self) -> None:
        """All that waits, in one batch."""
        if self._queue:
            self._commit(self._next_batch())

    def _start(self) -> None:
        pass

    def _wait_to_retry(self) -> bool:
        return self._crashing.is_dead
