"""Trajectory archive: groups with a known outcome as Parquet files, one row a turn with outcome and credit.
Every group is in at most one file, also after a resume from an earlier checkpoint.

Writing happens beside training: a full disk or a lost table is counted and said once, and stops nothing. What
was not written yet when everything was killed is in the ledger alone.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learners.advantages.group_advantages import TURN_ADVANTAGE
from learners.buffer.credit_columns import with_credits
from learners.buffer.ledger import TRAINED

logger = logging.getLogger(__name__)

MAX_PENDING = 4
"""Files waiting for a slow disk; more would fill the object store with what they hold, and are given up."""
FETCH_TIMEOUT_S = 60.0
FILE_NAME = re.compile(r"step-(\d+)(-rest|-part-\d+)?\.parquet")
ToCome = Callable[[Iterable[int]], set[int]]
"""Those of these groups, by id, whose fate a run has yet to decide."""


def step_file(step: int) -> str:
    """The name of the file of what a step trained, and of what was dropped before it."""
    return f"step-{step:05d}"


def part_file(step: int, *, part: int) -> str:
    """Of what was dropped before a step, where that was too much to wait for it, or where it never came."""
    return f"{step_file(step)}-part-{part:03d}"


def rest_file(step: int) -> str:
    """Of what was dropped after a step and before its checkpoint, from which the run has gone on."""
    return f"{step_file(step)}-rest"


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


def write_settled(
    path: Path,
    tables: Sequence[pa.Table],
    *,
    outcomes: Sequence[Sequence[str]],
    step: int,
    credits: pa.Table | None,
) -> None:
    """Writes groups with what became of them, and with what a step made of their turns. Raises as
    `write_tables` and `with_credits` do."""
    pairs = zip(tables, outcomes, strict=True)
    rows = pa.concat_tables(with_outcomes(table, outcomes=each, step=step) for table, each in pairs)
    # The learner's `advantage` stands in its place.
    rows = rows.select([name for name in rows.column_names if name != TURN_ADVANTAGE.name])
    write_tables(path, [with_credits(rows, credits)])


def write_tables(path: Path, tables: Sequence[pa.Table]) -> None:
    """Writes all tables as one zstd Parquet file; a reader sees all of it or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        pq.write_table(pa.concat_tables(tables), unfinished, compression="zstd")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def rewind(folder: Path, *, step: int, to_come: ToCome) -> None:
    """Makes the archive that of a run which goes on from its checkpoint of `step`: groups of later files that
    are `to_come` again are taken away, the others had been dropped when it was made, and are its rest.

    No group is lost or twice in it afterwards, though it be stopped in the middle and done again. Raises
    OSError or pa.ArrowException.
    """
    rest = folder / f"{rest_file(step)}.parquet"
    later = sorted(path for path in folder.glob("step-*.parquet") if path == rest or _step_of(path) > step)
    kept: list[pa.Table] = []
    seen: set[int] = set()
    for path in sorted(later, key=lambda path: path != rest):
        groups = set(pq.read_table(path, columns=["group_id"])["group_id"].to_pylist())
        stays = groups - seen - to_come(groups)
        if stays:
            kept.append(_at_step(pq.read_table(path, filters=pc.field("group_id").isin(list(stays))), step))
        seen |= stays
    if kept:
        # A run that an older version began has files without some of the columns.
        write_tables(rest, [pa.concat_tables(kept, promote_options="default")])
    for path in later:
        if path != rest or not kept:
            path.unlink()


def _step_of(path: Path) -> int:
    match = FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _at_step(table: pa.Table, step: int) -> pa.Table:
    steps = pa.array([step] * table.num_rows, pa.int64())
    return table.set_column(table.schema.get_field_index("step"), "step", steps)


class Archive:
    """Writes files in the background, in a thread; `flush` waits for them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.num_failures = 0
        """Files that could not be written, whole or in part."""
        self._pending: set[asyncio.Task[None]] = set()

    def submit(
        self,
        name: str,
        entries: Sequence[ArchiveEntry],
        *,
        step: int,
        credits: Awaitable[pa.Table] | None = None,
    ) -> None:
        """Begins to write `<folder>/<name>.parquet`, which replaces one of that name; returns at once.
        `credits` gives the step's table, see `with_credits`; without it those columns are null."""
        if not entries:
            return
        if len(self._pending) >= MAX_PENDING:
            self._report(f"{name}.parquet was given up: {MAX_PENDING} files still wait for the disk")
            return
        task = asyncio.create_task(self._write(name, entries, step=step, credits=credits))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def rewind(self, step: int, *, to_come: ToCome) -> None:
        """As `rewind`, in a thread."""
        try:
            await asyncio.to_thread(rewind, self._folder, step=step, to_come=to_come)
        except (OSError, pa.ArrowException) as error:
            self._report(f"rows after step {step} stay beside those to come: {type(error).__name__}: {error}")

    async def flush(self, *, timeout_s: float) -> None:
        """Waits until all is written, or raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*self._pending)

    async def _write(
        self,
        name: str,
        entries: Sequence[ArchiveEntry],
        *,
        step: int,
        credits: Awaitable[pa.Table] | None,
    ) -> None:
        tables: list[pa.Table] = []
        outcomes = [entry.outcomes for entry in entries]
        try:
            for entry in entries:
                async with asyncio.timeout(FETCH_TIMEOUT_S):
                    tables.append(await entry.ref)
            found = await self._credits(credits, name=name)
            path = self._folder / f"{name}.parquet"
            await asyncio.to_thread(write_settled, path, tables, outcomes=outcomes, step=step, credits=found)
        except Exception as error:  # the disk, a lost object: training goes on without this file
            self._report(f"{name}.parquet was not written: {type(error).__name__}: {error}")

    async def _credits(self, credits: Awaitable[pa.Table] | None, *, name: str) -> pa.Table | None:
        """None where it is lost with the learner's machine: the rows are kept without it."""
        if credits is None:
            return None
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                return await credits
        except Exception as error:
            self._report(f"{name}.parquet is without credit: {type(error).__name__}: {error}")
            return None

    def _report(self, text: str) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            logger.warning("%s (further failures are only counted: buffer/archive_failures)", text)
