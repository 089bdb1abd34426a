"""The archive: settled groups as Parquet, one row as in their table plus its outcome.

Writing happens beside training: a full disk or a lost table is counted and said once, and stops nothing.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from learners.ledger import TRAINED

logger = logging.getLogger(__name__)

MAX_PENDING = 4
"""Files waiting for a slow disk; more would fill the object store with what they hold, and are given up."""
FETCH_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveEntry:
    """One settled group on its way to disk."""

    ref: Awaitable[pa.Table]
    """Reference to its table, awaitable as Ray's are."""
    outcomes: Sequence[str]  # [group_size]
    """"trained" or a drop reason; indexed by the table's `trajectory` column."""


def with_outcomes(table: pa.Table, *, outcomes: Sequence[str], step: int) -> pa.Table:
    """The group's table with the columns `outcome` ("trained" or "dropped:<reason>") and `step`."""
    texts = pa.array([outcome if outcome == TRAINED else f"dropped:{outcome}" for outcome in outcomes])
    table = table.append_column("outcome", texts.take(table["trajectory"].combine_chunks()))
    return table.append_column("step", pa.array([step] * table.num_rows, type=pa.int64()))


def write_tables(path: Path, tables: Sequence[pa.Table]) -> None:
    """Writes all tables as one zstd Parquet file; a reader sees all of it or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        pq.write_table(pa.concat_tables(tables), unfinished, compression="zstd")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class Archive:
    """Writes files in the background, in a thread; `flush` waits for them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.num_failures = 0
        """Files that could not be written, whole or in part."""
        self._pending: set[asyncio.Task[None]] = set()

    def submit(self, name: str, entries: Sequence[ArchiveEntry], *, step: int) -> None:
        """Begins to write `<folder>/<name>.parquet`, which replaces one of that name; returns at once."""
        if not entries:
            return
        if len(self._pending) >= MAX_PENDING:
            self._report(f"{name}.parquet was given up: {MAX_PENDING} files still wait for the disk")
            return
        task = asyncio.create_task(self._write(name, entries, step=step))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def flush(self, *, timeout_s: float) -> None:
        """Waits until all is written, or raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*self._pending)

    async def _write(self, name: str, entries: Sequence[ArchiveEntry], *, step: int) -> None:
        tables: list[pa.Table] = []
        try:
            for entry in entries:
                async with asyncio.timeout(FETCH_TIMEOUT_S):
                    table = await entry.ref
                tables.append(with_outcomes(table, outcomes=entry.outcomes, step=step))
            await asyncio.to_thread(write_tables, self._folder / f"{name}.parquet", tables)
        except Exception as error:  # the disk, a lost object: training goes on without this file
            self._report(f"{name}.parquet was not written: {type(error).__name__}: {error}")

    def _report(self, text: str) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            logger.warning("%s (further failures are only counted: buffer/archive_failures)", text)
