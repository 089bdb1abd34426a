"""Write-ahead log: one thread appends entries in order and syncs them to disk, retrying while the disk fails.

What arrives while a sync is under way goes with the next: many entries share one. A write that fails is said,
and tried again in a new segment until it succeeds; nobody is told that an entry is there before it is.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from learners.buffer.log.segments import (
    EMPTY,
    FORMAT,
    FORMAT_KIND,
    LogDisk,
    LogEntry,
    first_number,
    frame_of,
    read_journal,
    segment_name,
    segments,
)

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 2**20
"""A segment that has reached this is followed by another; what is not needed any more goes segment by
segment."""
RETRY_S = 1.0
CLOSE_TIMEOUT_S = 10.0


class LogClosedError(RuntimeError):
    """The journal was closed before the entry was on the disk."""


class WriteAheadLog:
    """One run's journal. `recover` comes before the first `append`; both raise nothing of the disk's but
    what `recover` reads."""

    def __init__(self, folder: Path, *, disk: LogDisk | None = None, segment_bytes: int = SEGMENT_BYTES):
        self.trouble = ""
        """Why the disk takes nothing at the moment; empty where it does."""
        self.num_failures = 0
        """Writes that had to be tried again."""
        self.next_number = 0
        """Of the next entry."""
        self._folder = folder
        self._disk = disk or LogDisk()
        self._segment_bytes = segment_bytes
        self._queue: list[tuple[LogEntry, Future[None]]] = []
        self._has_work = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._file: BinaryIO | None = None
        self._num_bytes = 0
        """In the open segment."""

    def recover(self) -> list[LogEntry]:
        """What the journal holds, all of it synced. Raises OSError, and JournalError for a format of
        later."""
        entries = read_journal(self._folder)
        for path in segments(self._folder):
            self._disk.sync_path(path)
        if self._folder.is_dir():
            self._disk.sync_folder(self._folder)
        self.next_number = entries[-1].number + 1 if entries else self._beyond()
        for path in segments(self._folder):
            # What lies beyond a gap must not come to life again when the gap is filled.
            if not entries or first_number(path) > self.next_number:
                self._disk.delete(path)
        return entries

    def skip_to(self, number: int) -> None:
        """The next entry gets at least this number: entries that a checkpoint knows of, and that are not
        there, are never mistaken for those to come. Whatever is there is deleted. Raises OSError."""
        if number > self.next_number:
            for path in segments(self._folder):
                self._disk.delete(path)
            self.next_number = number

    def append(self, kind: str, *, facts: Mapping[str, Any], body: pa.Buffer = EMPTY) -> "Future[None]":
        """Puts an entry at the end. The future is done when it, and all before it, are on the disk; it raises
        JournalClosedError where they never will be."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # who waits for it may give up: the entry is written all the same
        with self._has_work:
            if self._closed:
                done.set_exception(LogClosedError(f"{self._folder}: the journal is closed"))
                return done
            entry = LogEntry(number=self.next_number, kind=kind, facts=facts, body=body)
            self.next_number += 1
            self._queue.append((entry, done))
            self._has_work.notify()
        self._start()
        return done

    def forget(self, before: int) -> None:
        """Deletes the segments all of whose entries have a number below. Raises OSError."""
        paths = segments(self._folder)
        for path, following in pairwise(paths):
            if first_number(following) <= before:
                self._disk.delete(path)

    def close(self) -> None:
        """Writes what waits, if the disk takes it. What it does not take never was."""
        with self._has_work:
            self._closed = True
            self._has_work.notify()
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_TIMEOUT_S)

    def _beyond(self) -> int:
        """Where a journal of which nothing can be read goes on: behind every number in a name."""
        return max((first_number(path) for path in segments(self._folder)), default=0)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._commit(batch)
        if self._file is not None:
            self._file.close()

    def _next_batch(self) -> list[tuple[LogEntry, "Future[None]"]]:
        """All that waits; nothing at the end."""
        with self._has_work:
            self._has_work.wait_for(lambda: self._queue or self._closed)
            batch, self._queue = self._queue, []
            return batch

    def _commit(self, batch: Sequence[tuple[LogEntry, "Future[None]"]]) -> None:
        entries = [entry for entry, _ in batch]
        while not self._write(entries):
            if self._wait_for_room():
                for _, done in batch:
                    done.set_exception(LogClosedError(f"{self._folder}: {self.trouble}"))
                return
        for _, done in batch:
            done.set_result(None)

    def _write(self, entries: Sequence[LogEntry]) -> bool:
        """Whether they are on the disk now."""
        try:
            if self._file is None:
                self._begin_segment(entries[0].number)
            assert self._file is not None
            for entry in entries:
                self._write_entry(self._file, entry)
            self._disk.sync(self._file)
        except OSError as error:
            self._give_up_segment(error)
            return False
        if self.trouble:
            logger.warning("%s: the journal goes on", self._folder)
            self.trouble = ""
        if self._num_bytes >= self._segment_bytes:
            self._file.close()
            self._file = None
        return True

    def _begin_segment(self, first: int) -> None:
        """What a failed write left under this name is written over: nobody was told that it is there."""
        self._file = self._disk.create(self._folder / segment_name(first))
        self._num_bytes = 0
        self._write_entry(self._file, LogEntry(number=first, kind=FORMAT_KIND, facts={"format": FORMAT}))

    def _write_entry(self, file: BinaryIO, entry: LogEntry) -> None:
        for part in frame_of(entry):
            self._disk.write(file, part)
            self._num_bytes += len(part)

    def _give_up_segment(self, error: OSError) -> None:
        """A segment whose write or sync failed may hold anything at its end: it is never written to again."""
        self.num_failures += 1
        if not self.trouble:
            logger.warning("%s: the journal waits for the disk: %s", self._folder, error)
        self.trouble = error.strerror or repr(error)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _wait_for_room(self) -> bool:
        """Waits before the next try; true where the journal was closed."""
        with self._has_work:
            return self._has_work.wait_for(lambda: self._closed, timeout=RETRY_S)
