"""Resolved groups by step: writes them to the archive, and keeps their summaries for the step's report."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupSummary
from learners.buffer.archive import Archive, Unresolved, part_file, step_file

FLUSH_TIMEOUT_S = 60.0
MAX_RESOLVED = 256
"""Dropped groups whose tables wait for their step's file; with more, a part is written before it. A policy
with many zero-advantage groups drops far more groups than it trains."""


class StepArchive:
    """Writes the files of each step, and keeps the summaries of groups that no step has reported yet."""

    def __init__(self, archive: Archive):
        self._archive = archive
        self._last_step = 0
        self._unreported: list[FinishedGroup] = []
        """Groups in parts, without their payloads."""
        self._num_parts = 0

    @property
    def num_failures(self) -> int:
        """Files that could not be written, fully or in part."""
        return self._archive.num_failures

    def write_part(self, groups: Sequence[FinishedGroup]) -> None:
        """Archives groups that were dropped since the last step; the next one reports them."""
        step = self._last_step + 1
        self._archive.submit(part_file(step, part=self._num_parts), groups, step=step)
        self._num_parts += 1
        self._unreported += [replace(group, payload=None) for group in groups]

    def end_step(
        self, groups: Sequence[FinishedGroup], *, step: int, credits: Awaitable[pa.Table] | None = None
    ) -> list[GroupSummary]:
        """Archives the groups that were resolved since the last part, and returns the summaries of all that
        `step` reports. `credits`: see `learners.training.turn_credit_table`."""
        self._last_step = step
        self._archive.submit(step_file(step), groups, step=step, credits=credits)
        reported, self._unreported, self._num_parts = [*self._unreported, *groups], [], 0
        return [group.summary for group in reported]

    def unreported(self, resolved: Sequence[FinishedGroup]) -> Mapping[int, Sequence[str]]:
        """Outcomes by group, of those in parts and of `resolved`, which are in no file yet."""
        return {group.order.group_id: group.outcomes for group in (*self._unreported, *resolved)}

    async def rewind(self, step: int, *, unresolved: Unresolved) -> None:
        """Makes the archive that of a run that resumes after `step`, see `archive.rewind`."""
        self._last_step = step
        await self._archive.rewind(step, unresolved=unresolved)

    async def flush(self) -> None:
        """Waits until all files are written. Raises TimeoutError if the disk hangs."""
        await self._archive.flush(timeout_s=FLUSH_TIMEOUT_S)
