"""Groups with a known outcome, collected per step for the archive and for the step's report."""

from collections.abc import Awaitable, Mapping, Sequence

import pyarrow as pa

from actors.trajectory import GroupSummary
from learners.buffer.archive import Archive, ArchiveEntry, ToCome, part_file, step_file
from learners.buffer.buffered_group import SettledGroup

FLUSH_TIMEOUT_S = 60.0
MOST_SETTLED = 256
"""Dropped groups whose tables wait for a step, to be written with it; more are written before. A policy that
most gyms find flat drops far more groups than it trains."""


class StepArchive:
    """Writes them, in files of a step, and keeps the summaries of those that no step has reported yet."""

    def __init__(self, archive: Archive):
        self._archive = archive
        self._last_step = 0
        self._summaries: list[GroupSummary] = []
        """Written before the step that reports them."""
        self._outcomes: dict[int, Sequence[str]] = {}
        """Theirs, by group."""
        self._num_parts = 0
        """Files of them."""

    @property
    def num_failures(self) -> int:
        """Files that could not be written, whole or in part."""
        return self._archive.num_failures

    def write_part(self, settled: Sequence[SettledGroup]) -> None:
        """Archives what was dropped since the last step, for the next one to report."""
        step = self._last_step + 1
        self._write(part_file(step, part=self._num_parts), settled, step=step)
        self._num_parts += 1
        self._summaries += [one.group.summary for one in settled]
        self._outcomes |= {one.group.order.group_id: one.outcomes for one in settled}

    def end_step(
        self, settled: Sequence[SettledGroup], *, step: int, credits: Awaitable[pa.Table] | None = None
    ) -> list[GroupSummary]:
        """Archives what was settled since the last part; the summaries of all that `step` reports. `credits`
        gives what it made of their turns, see `learners.training.turn_credit_table`."""
        self._last_step = step
        self._write(step_file(step), settled, step=step, credits=credits)
        summaries = self._summaries + [one.group.summary for one in settled]
        self._summaries, self._outcomes, self._num_parts = [], {}, 0
        return summaries

    def unreported(self, settled: Sequence[SettledGroup]) -> Mapping[int, Sequence[str]]:
        """Outcomes by group, of those that are written and of `settled`, which are not yet."""
        return self._outcomes | {one.group.order.group_id: one.outcomes for one in settled}

    async def rewind(self, step: int, *, to_come: ToCome) -> None:
        """Makes the archive that of a run which goes on after `step`; `to_come` says what comes again."""
        self._last_step = step
        await self._archive.rewind(step, to_come=to_come)

    async def flush(self) -> None:
        """Waits until all is written. TimeoutError if the disk hangs."""
        await self._archive.flush(timeout_s=FLUSH_TIMEOUT_S)

    def _write(
        self,
        name: str,
        settled: Sequence[SettledGroup],
        *,
        step: int,
        credits: Awaitable[pa.Table] | None = None,
    ) -> None:
        entries = [ArchiveEntry(ref=one.group.payload, outcomes=one.outcomes) for one in settled]
        self._archive.submit(name, entries, step=step, credits=credits)
