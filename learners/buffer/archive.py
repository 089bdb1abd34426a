"""Trajectory archive: resolved groups as Parquet files, one row per turn with outcome and credit. Every group
is in at most one file, also after a resume from an earlier checkpoint.

Files are written in the background: a full disk or a lost table is counted, reported once, and stops nothing.
A file that was not written when the process was killed is missing; its groups are in the ledger only.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupSummary
from learners.advantages.group_advantages import TURN_ADVANTAGE
from learners.buffer.credit_columns import with_credits
from learners.buffer.ledger import TRAINED

logger = logging.getLogger(__name__)

MAX_PENDING = 4
"""Files that wait for a slow disk. Further ones are given up, since their tables would fill the object
store."""
FETCH_TIMEOUT_S = 60.0
FLUSH_TIMEOUT_S = 60.0
MAX_RESOLVED = 256
"""Dropped groups whose tables wait for their step's file; with more, a part is written before it. A policy
with many zero-advantage groups drops far more groups than it trains."""
FILE_NAME = re.compile(r"step-(\d+)(-rest|-part-\d+)?\.parquet")
Unresolved = Callable[[Iterable[int]], set[int]]
"""Ids of groups to those that the run has not resolved yet."""


def step_file(step: int) -> str:
    """File name of the groups that a step trained, and that were dropped before it."""
    return f"step-{step:05d}"


def part_file(step: int, *, part: int) -> str:
    """File name of groups that were dropped before a step and could not wait for it, or that it never came
    to."""
    return f"{step_file(step)}-part-{part:03d}"


def rest_file(step: int) -> str:
    """File name of groups that were dropped between a step and its checkpoint, from which the run resumed."""
    return f"{step_file(step)}-rest"


def with_outcomes(table: pa.Table, *, outcomes: Sequence[str], step: int) -> pa.Table:
    """The group's table with the columns `outcome` ("trained" or "dropped:<reason>") and `step`."""
    texts = pa.array([outcome if outcome == TRAINED else f"dropped:{outcome}" for outcome in outcomes])
    table = table.append_column("outcome", texts.take(table["trajectory"].combine_chunks()))
    return table.append_column("step", pa.array([step] * table.num_rows, type=pa.int64()))


def write_groups(
    path: Path,
    tables: Sequence[pa.Table],
    *,
    outcomes: Sequence[Sequence[str]],  # [num_groups][num_dialogues]
    step: int,
    credits: pa.Table | None,
) -> None:
    """Writes groups with their outcomes, and with the step's credit table. Raises as `write_tables` and
    `with_credits` do."""
    pairs = zip(tables, outcomes, strict=True)
    rows = pa.concat_tables(with_outcomes(table, outcomes=own, step=step) for table, own in pairs)
    # The credit table's `advantage` replaces it.
    rows = rows.select([name for name in rows.column_names if name != TURN_ADVANTAGE.name])
    write_tables(path, [with_credits(rows, credits)])


def write_tables(path: Path, tables: Sequence[pa.Table]) -> None:
    """Writes all tables as one zstd Parquet file, atomically. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        pq.write_table(pa.concat_tables(tables), unfinished, compression="zstd")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def rewind(folder: Path, *, step: int, unresolved: Unresolved) -> None:
    """Makes the archive that of a run that resumes from its checkpoint of `step`: of later files, the groups
    that are unresolved again are deleted; the others had been dropped before it, and go to its rest file.

    It can be interrupted and repeated: no group is lost or in two files afterwards. Raises OSError or
    pa.ArrowException.
    """
    rest = folder / f"{rest_file(step)}.parquet"
    later = sorted(path for path in folder.glob("step-*.parquet") if path == rest or _step_of(path) > step)
    kept: list[pa.Table] = []
    seen: set[int] = set()
    for path in sorted(later, key=lambda path: path != rest):
        groups = set(pq.read_table(path, columns=["group_id"])["group_id"].to_pylist())
        stays = groups - seen - unresolved(groups)
        if stays:
            kept.append(_at_step(pq.read_table(path, filters=pc.field("group_id").isin(list(stays))), step))
        seen |= stays
    if kept:
        write_tables(rest, kept)
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
    """Writes the files of each step in the background, in a thread; `flush` waits for them. Keeps the
    summaries of groups that no step has reported yet."""

    def __init__(self, folder: Path):
        self.num_failures = 0
        """Files that could not be written, fully or in part."""
        self._folder = folder
        self._pending: set[asyncio.Task[None]] = set()
        self._last_step = 0
        self._unreported: list[FinishedGroup] = []
        """Groups in parts, without their payloads."""
        self._num_parts = 0

    def write_part(self, groups: Sequence[FinishedGroup]) -> None:
        """Archives groups that were dropped since the last step; the next one reports them."""
        step = self._last_step + 1
        self._submit(part_file(step, part=self._num_parts), groups, step=step)
        self._num_parts += 1
        self._unreported += [replace(group, payload=None) for group in groups]

    def end_step(
        self, groups: Sequence[FinishedGroup], *, step: int, credits: Awaitable[pa.Table] | None = None
    ) -> list[GroupSummary]:
        """Archives the groups that were resolved since the last part, and returns the summaries of all that
        `step` reports. `groups` have awaitable payloads and outcomes. `credits` is the step's credit table,
        see `with_credits`; None leaves those columns null."""
        self._last_step = step
        self._submit(step_file(step), groups, step=step, credits=credits)
        reported, self._unreported, self._num_parts = [*self._unreported, *groups], [], 0
        return [group.summary for group in reported]

    def unreported(self, resolved: Sequence[FinishedGroup]) -> Mapping[int, Sequence[str]]:
        """Outcomes by group, of those in parts and of `resolved`, which are in no file yet."""
        return {group.order.group_id: group.outcomes for group in (*self._unreported, *resolved)}

    async def rewind(self, step: int, *, unresolved: Unresolved) -> None:
        """`rewind` in a thread; a failure is reported."""
        self._last_step = step
        try:
            await asyncio.to_thread(rewind, self._folder, step=step, unresolved=unresolved)
        except (OSError, pa.ArrowException) as error:
            self._report(f"rows after step {step} could not be deleted: {type(error).__name__}: {error}")

    async def flush(self) -> None:
        """Waits until all files are written. Raises TimeoutError if the disk hangs."""
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            await asyncio.gather(*self._pending)

    def _submit(
        self,
        name: str,
        groups: Sequence[FinishedGroup],
        *,
        step: int,
        credits: Awaitable[pa.Table] | None = None,
    ) -> None:
        """Starts to write `<folder>/<name>.parquet`, which replaces a file of that name; returns at once."""
        if not groups:
            return
        if len(self._pending) >= MAX_PENDING:
            self._report(f"{name}.parquet was not written: {MAX_PENDING} files already wait for the disk")
            return
        task = asyncio.create_task(self._write(name, groups, step=step, credits=credits))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _write(
        self,
        name: str,
        groups: Sequence[FinishedGroup],
        *,
        step: int,
        credits: Awaitable[pa.Table] | None,
    ) -> None:
        tables: list[pa.Table] = []
        outcomes = [group.outcomes for group in groups]
        try:
            for group in groups:
                async with asyncio.timeout(FETCH_TIMEOUT_S):
                    tables.append(await group.payload)
            found = await self._credits(credits, name=name)
            path = self._folder / f"{name}.parquet"
            await asyncio.to_thread(write_groups, path, tables, outcomes=outcomes, step=step, credits=found)
        except Exception as error:  # the disk, or a lost object: training continues without this file
            self._report(f"{name}.parquet was not written: {type(error).__name__}: {error}")

    async def _credits(self, credits: Awaitable[pa.Table] | None, *, name: str) -> pa.Table | None:
        """None if it is lost with the learner's machine: the rows are kept without it."""
        if credits is None:
            return None
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                return await credits
        except Exception as error:
            self._report(f"{name}.parquet has no credit: {type(error).__name__}: {error}")
            return None

    def _report(self, text: str) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            logger.warning("%s (further failures are only counted: buffer/archive_failures)", text)
