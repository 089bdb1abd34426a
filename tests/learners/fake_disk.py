"""Fake disks for the write-ahead log: one that fails at any operation and loses unsynced bytes, one that is
full."""

import errno
import os
import random
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from learners.buffer.log.segments import LogDisk
from learners.buffer.log.write_ahead_log import WriteAheadLog

BLOCK = 16
"""Bytes that reach the disk together or not at all, in any order; small, so that each entry has several
blocks."""


class CrashingDisk(LogDisk):
    """The real disk, with a record of the synced bytes. From operation `dies_at` on nothing reaches it; the
    operations `full_at` fail half done, as on a full disk."""

    def __init__(
        self,
        *,
        dies_at: int | None = None,
        full_at: frozenset[int] = frozenset(),
        synced: dict[Path, int] | None = None,
    ):
        self.synced = synced or {}
        """Synced bytes of each file; the argument is that of an earlier process on this disk."""
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
        """Nothing to do: here a name is durable at once."""

    def delete(self, path: Path) -> None:
        self._operate()
        super().delete(path)

    def lose_power(self, rng: random.Random) -> None:
        """The machine loses power: every file keeps its synced bytes, and a part of the rest, of which any
        blocks may be missing."""
        for path, safe in self.synced.items():
            if not path.exists():
                continue
            content = bytearray(path.read_bytes())
            end = safe + rng.randint(0, len(content) - safe)
            for start in range(safe, end, BLOCK):
                if rng.random() < 0.5:
                    stop = min(start + BLOCK, end)
                    content[start:stop] = bytes(stop - start)
            left = path.with_suffix(".left")  # another file: the dead process has this one mapped
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
    """The real disk, full while `is_full`."""

    is_full = False

    def write(self, file: BinaryIO, part: bytes | pa.Buffer) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(file, part)


class InlineLog(WriteAheadLog):
    """Writes on the test's call, in the test's thread, so that the test decides when a crash comes."""

    def __init__(self, folder: Path, *, disk: CrashingDisk, segment_bytes: int):
        super().__init__(folder, disk=disk, segment_bytes=segment_bytes)
        self._crashing = disk

    def write(self) -> None:
        """Writes all queued entries in one batch."""
        if self._queue:
            self._commit(self._next_batch())

    def _start(self) -> None:
        pass

    def _wait_to_retry(self) -> bool:
        return self._crashing.is_dead
