"""Write-ahead log: one thread appends entries in order and syncs them to disk, retrying while the disk fails.

Entries that are appended during a sync share the next one. A failed write is logged and retried in a new
segment until it succeeds; an entry's future is done only when the entry is on disk.
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
    read_log,
    segment_name,
    segments,
)

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 2**20
"""Size after which a new segment begins. Unneeded entries are deleted by whole segments."""
RETRY_S = 1.0
CLOSE_TIMEOUT_S = 10.0


class LogClosedError(RuntimeError):
    """The log was closed before the entry was on disk."""


class WriteAheadLog:
    """One run's log. Call `recover` before the first `append`. A failing disk raises OSError in `recover`,
    `skip_to` and `trim` only."""

    def __init__(self, folder: Path, *, disk: LogDisk | None = None, segment_bytes: int = SEGMENT_BYTES):
        self.disk_error = ""
        """Why the disk accepts nothing at the moment; empty if it does."""
        self.num_failures = 0
        """Writes that had to be retried."""
        self.next_number = 0
        """Number of the next entry."""
        self._folder = folder
        self._disk = disk or LogDisk()
        self._segment_bytes = segment_bytes
        self._queue: list[tuple[LogEntry, Future[None]]] = []
        self._has_work = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._file: BinaryIO | None = None
        self._num_bytes = 0
        """Size of the open segment."""

    def recover(self) -> list[LogEntry]:
        """The log's entries, all of them synced. Raises OSError, and LogError for a later format."""
        entries = read_log(self._folder)
        for path in segments(self._folder):
            self._disk.sync_path(path)
        if self._folder.is_dir():
            self._disk.sync_folder(self._folder)
        self.next_number = (
            entries[-1].number + 1
            if entries
            else max((first_number(path) for path in segments(self._folder)), default=0)
        )
        for path in segments(self._folder):
            # Entries after a gap must not become valid again when the gap is filled.
            if not entries or first_number(path) > self.next_number:
                self._disk.delete(path)
        return entries

    def skip_to(self, number: int) -> None:
        """The next entry gets at least this number, so that missing entries that a checkpoint names are never
        confused with new ones. Existing entries are deleted then. Raises OSError."""
        if number > self.next_number:
            for path in segments(self._folder):
                self._disk.delete(path)
            self.next_number = number

    def append(self, kind: str, *, facts: Mapping[str, Any], body: pa.Buffer = EMPTY) -> "Future[None]":
        """Appends an entry. The future is done when it and all entries before it are on disk, and raises
        LogClosedError if they never will be."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # cancelling it does not stop the write
        with self._has_work:
            if self._closed:
                done.set_exception(LogClosedError(f"{self._folder}: the write-ahead log is closed"))
                return done
            entry = LogEntry(number=self.next_number, kind=kind, facts=facts, body=body)
            self.next_number += 1
            self._queue.append((entry, done))
            self._has_work.notify()
        self._start()
        return done

    def trim(self, before: int) -> None:
        """Deletes the segments whose entries all have a lower number. Raises OSError."""
        paths = segments(self._folder)
        for path, following in pairwise(paths):
            if first_number(following) <= before:
                self._disk.delete(path)

    def close(self) -> None:
        """Writes the queued entries if the disk accepts them; if not, their futures fail."""
        with self._has_work:
            self._closed = True
            self._has_work.notify()
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="write-ahead-log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._commit(batch)
        if self._file is not None:
            self._file.close()

    def _next_batch(self) -> list[tuple[LogEntry, "Future[None]"]]:
        """All queued entries; empty when the log is closed."""
        with self._has_work:
            self._has_work.wait_for(lambda: self._queue or self._closed)
            batch, self._queue = self._queue, []
            return batch

    def _commit(self, batch: Sequence[tuple[LogEntry, "Future[None]"]]) -> None:
        entries = [entry for entry, _ in batch]
        while not self._write(entries):
            if self._wait_to_retry():
                for _, done in batch:
                    done.set_exception(LogClosedError(f"{self._folder}: {self.disk_error}"))
                return
        for _, done in batch:
            done.set_result(None)

    def _write(self, entries: Sequence[LogEntry]) -> bool:
        """Whether the entries are on disk now."""
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
        if self.disk_error:
            logger.warning("%s: the write-ahead log writes again", self._folder)
            self.disk_error = ""
        if self._num_bytes >= self._segment_bytes:
            self._file.close()
            self._file = None
        return True

    def _begin_segment(self, first: int) -> None:
        """A failed write's file of this name is overwritten: none of its entries was confirmed."""
        self._file = self._disk.create(self._folder / segment_name(first))
        self._num_bytes = 0
        self._write_entry(self._file, LogEntry(number=first, kind=FORMAT_KIND, facts={"format": FORMAT}))

    def _write_entry(self, file: BinaryIO, entry: LogEntry) -> None:
        for part in frame_of(entry):
            self._disk.write(file, part)
            self._num_bytes += len(part)

    def _give_up_segment(self, error: OSError) -> None:
        """A segment whose write or sync failed may end in garbage: it is never written to again."""
        self.num_failures += 1
        if not self.disk_error:
            logger.warning("%s: the write-ahead log waits for the disk: %s", self._folder, error)
        self.disk_error = error.strerror or repr(error)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _wait_to_retry(self) -> bool:
        """Waits before a retry; true if the log was closed meanwhile."""
        with self._has_work:
            return self._has_work.wait_for(lambda: self._closed, timeout=RETRY_S)
