"""The buffer as a Ray actor: long polls around `Buffer`, and the archive of what was settled.

`ray.remote` is applied in cluster/. One event loop; nothing here fetches a table but the archive.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray import ObjectRef

from actors.trajectory import GroupOrder, GroupSummary
from learners.archive import Archive, ArchiveEntry, part_file, step_file
from learners.buffer import Buffer, BufferSizes, FinishedGroup, SettledGroup
from learners.feed import Feed, GroupRows
from learners.ledger import IsFlat, Ledger
from simulators.task import TaskSource

FLUSH_TIMEOUT_S = 60.0
MOST_SETTLED = 256
"""Dropped groups whose tables wait for a step, to be written with it; more are written before. A policy that
most gyms find flat drops far more groups than it trains."""
MOST_NAMED = 8
"""Groups of one kind in a line for people; thousands may be in flight."""
TEXT_COLUMNS = (
    *("group_id", "trajectory", "turn", "gym", "task_id", "stop_reason", "system", "opening"),
    *("text", "choice", "content", "feedback", "env_reward", "reward"),
)
"""What a person reads of a dialogue."""


class BufferActor(Feed):
    """The feed of training."""

    def __init__(
        self,
        sizes: BufferSizes,
        *,
        source: TaskSource,
        run_folder: Path,
        is_flat: IsFlat,
        group_timeout_s: float,
    ):
        super().__init__(group_timeout_s=group_timeout_s)
        self._source = source
        self._buffer = Buffer(sizes, source=source, is_flat=is_flat)
        self._archive = Archive(run_folder / "trajectories")
        self._last_step = 0
        self._has_issued = False
        self._written: list[GroupSummary] = []
        """Of groups that were written before the step that reports them."""
        self._num_parts = 0
        """Files of them."""
        self._closed = False

    async def take(self, num_groups: int, policy_version: int, timeout_s: float) -> list[FinishedGroup]:
        """The oldest `num_groups` groups that a step on `policy_version` may train.

        Their payload are their `GroupRows`. TimeoutError names what it waited for.
        """
        try:
            async with self._changed, asyncio.timeout(timeout_s):
                while (groups := self._buffer.take(num_groups, policy_version=policy_version)) is None:
                    self._wake()  # stale groups may have freed slots
                    await self._changed.wait()
                self._wake()
                return groups
        except TimeoutError:
            ready = f"{self._buffer.num_ready} of {num_groups} groups are ready after {timeout_s:.0f} s"
            dropped = ", ".join(
                f"{reason} {count}" for reason, count in self._buffer.ledger().dropped.items()
            )
            raise TimeoutError(f"{ready}; dropped so far: {dropped}; {self._stuck()}") from None

    async def dialogues(self, group_ids: Sequence[int], num_dialogues: int) -> list[pa.Table]:
        """The first dialogues of taken groups, one table of text each; no token leaves this actor."""
        dialogues: list[pa.Table] = []
        # All looked up before the first wait: they may be booked meanwhile.
        for payload in [self._buffer.taken(group_id).payload for group_id in group_ids]:
            table = (await payload).select(TEXT_COLUMNS)
            for trajectory in dict.fromkeys(table["trajectory"].to_pylist()):
                if len(dialogues) == num_dialogues:
                    return dialogues
                dialogues.append(table.filter(pc.field("trajectory") == trajectory))
        return dialogues

    async def book(self, group_ids: Sequence[int], step: int) -> list[GroupSummary]:
        """Books taken groups as trained by `step`, and archives all that was settled since the step before,
        dropped groups among them: their summaries, of exactly the rows in `step-NNNNN.parquet` and its parts,
        `step-NNNNN-part-NNN.parquet`."""
        self._buffer.book(group_ids)
        self._last_step = step
        settled = self._write_settled(step_file(step), step=step)
        summaries = [*self._written, *(one.group.summary for one in settled)]
        self._written, self._num_parts = [], 0
        return summaries

    async def release(
        self, group_ids: Sequence[int], policy_version: int, live: Sequence[ObjectRef] = ()
    ) -> None:
        """Frees the slots of booked groups as soon as the weights of their step, `policy_version`, are live:
        when all of `live` are done, one an engine. Raises what one of them raised; then no slot is freed.

        `live` comes inside a list because Ray waits for a reference that is an argument itself.
        """
        await asyncio.gather(*live)
        self._buffer.release(group_ids)
        self._buffer.drop_stale(policy_version=policy_version)
        await self._notify()

    async def ledger(self) -> Ledger:
        """Where every trajectory went."""
        return self._buffer.ledger()

    async def metrics(self) -> dict[str, float]:
        """The ledger's keys, and the buffer's own."""
        return {
            **self._buffer.ledger().metrics(),
            "buffer/groups_ready": float(self._buffer.num_ready),
            "buffer/slots_taken": float(self._buffer.num_open),
            "buffer/puts_ignored": float(self._buffer.num_puts_ignored),
            "buffer/reissued": float(self.num_reissued),
            "buffer/archive_failures": float(self._archive.num_failures),
        }

    async def num_lost_in_a_row(self) -> int:
        """Groups since the last one in which any trajectory went to its end and got a reward."""
        return self._buffer.num_lost_in_a_row

    async def state(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        return self._buffer.state()

    async def has_issued(self) -> bool:
        """Whether any group was ordered in this buffer's life."""
        return self._has_issued

    async def restore(self, state: dict[str, Any], step: int) -> None:
        """Goes on from `state()` after `step`: what was open then is issued again first, and the archive
        keeps no row of what is still to come. Not once a group was issued (`has_issued`): its result, begun
        before this, would be taken for one begun after it.
        """
        assert not self._has_issued, "groups were ordered already"
        self._buffer = Buffer.from_state(
            state, sizes=self._buffer.sizes, source=self._source, is_flat=self._buffer.is_flat
        )
        self._last_step = step
        await self._archive.rewind(step, to_come=self._buffer.to_come)
        await self._notify()

    async def close(self) -> None:
        """Ends the feed: `next_orders` gives None, and no group is taken in any more. Waits for the archive;
        TimeoutError if the disk hangs."""
        self._closed = True
        await self._notify()
        self._write_part()
        await self._archive.flush(timeout_s=FLUSH_TIMEOUT_S)

    def _write_settled(self, name: str, *, step: int) -> list[SettledGroup]:
        settled = self._buffer.pop_settled()
        entries = [ArchiveEntry(ref=one.group.payload, outcomes=one.outcomes) for one in settled]
        self._archive.submit(name, entries, step=step)
        return settled

    def _write_part(self) -> None:
        """Archives, and lets go of, what was dropped since the last step, for the next one to report."""
        step = self._last_step + 1
        settled = self._write_settled(part_file(step, part=self._num_parts), step=step)
        self._num_parts += 1
        self._written += [one.group.summary for one in settled]

    def _stuck(self) -> str:
        """The groups that are waited for, those that have been out for longest first."""
        now = time.monotonic()
        held = [
            f"group {group_id} with {issue.holder} for {now - issue.at_s:.0f} s"
            for group_id, issue in islice(self._issues.items(), MOST_NAMED)
        ]
        waiting = [
            f"group {group_id} waits to be issued again" for group_id in self._buffer.waiting[:MOST_NAMED]
        ]
        num_others = len(self._issues) + len(self._buffer.waiting) - len(held) - len(waiting)
        others = [f"and {num_others} others"] if num_others else []
        return "; ".join([*held, *waiting, *others]) or "nobody has asked for orders"

    def _issue(self) -> GroupOrder | None:
        order = self._buffer.issue()
        self._has_issued |= order is not None
        return order

    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool:
        is_wanted = self._buffer.put(order, summary=summary, payload=rows)
        if self._buffer.num_settled >= MOST_SETTLED:
            self._write_part()
        return is_wanted

    def _take_back(self, group_ids: Sequence[int]) -> None:
        self._buffer.take_back(group_ids)

    def _ended(self) -> bool:
        return self._closed
