"""The buffer as a Ray actor: long polls around `Buffer`, the trajectory archive, and the write-ahead log from
which a run resumes after a crash (docs/resume.md).

`ray.remote` is applied in cluster/. One event loop; nothing here fetches a table but the archive.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import ObjectRef
from ray.exceptions import RayActorError

from actors.engines.protocol import EngineGoneError
from actors.group_transport import GroupBatch
from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.archive import Archive
from learners.buffer.buffer import Buffer, BufferSizes
from learners.buffer.buffered_group import BufferedGroup
from learners.buffer.group_store import GroupRows
from learners.buffer.ledger import Ledger
from learners.buffer.log.events import NO_ACCOUNT, BufferEventLog, LoggedEvents
from learners.buffer.log.replay import LogReplay
from learners.buffer.step_archive import MOST_SETTLED, StepArchive
from learners.buffer.work_source import WorkSource
from simulators.task import TaskSource

logger = logging.getLogger(__name__)

GONE = (RayActorError, EngineGoneError)
"""What an engine's calls raise once it will serve nothing any more."""


class BufferActor(WorkSource):
    """The feed of training."""

    def __init__(
        self,
        sizes: BufferSizes,
        *,
        source: TaskSource,
        run_folder: Path,
        group_timeout_s: float,
        recall: BufferEventLog | None = None,
    ):
        """`recall`: another than the run folder's own."""
        super().__init__(group_timeout_s=group_timeout_s)
        self._source = source
        self._buffer = Buffer(sizes, source=source)
        self._settled = StepArchive(Archive(run_folder / "trajectories"))
        self._recall = recall or BufferEventLog(run_folder / "journal")
        self._redo: LogReplay | None = None
        """While steps are taken again."""
        self._opens_at: int | None = None
        """The policy version that must be live before anything is handed out; None: it is."""
        self._has_issued = False
        self._closed = False

    async def take(self, num_groups: int, policy_version: int, timeout_s: float) -> list[BufferedGroup]:
        """The oldest `num_groups` groups that a step on `policy_version` may train.

        Their payload are their `GroupRows`. TimeoutError names what it waited for.
        """
        if self._redo and (groups := await self._redo.take(policy_version=policy_version)) is not None:
            return groups
        try:
            async with asyncio.timeout(timeout_s):
                await self._recall.written()  # on a full disk no step begins
                groups, taken = await self._take(num_groups, policy_version=policy_version)
        except TimeoutError:
            ready = f"{self._buffer.num_ready} of {num_groups} groups are ready after {timeout_s:.0f} s"
            dropped = ", ".join(
                f"{reason} {count}" for reason, count in self._buffer.ledger().dropped.items()
            )
            trouble = self._recall.trouble
            disk = f"the journal waits for the disk: {trouble}; " if trouble else ""
            stuck = self._stuck(self._buffer.waiting)
            raise TimeoutError(f"{disk}{ready}; dropped so far: {dropped}; {stuck}") from None
        await taken  # no learner sees what a crash could forget
        return groups

    async def _take(
        self, num_groups: int, *, policy_version: int
    ) -> tuple[list[BufferedGroup], asyncio.Future[None]]:
        """The groups, and when it is on the disk that they are taken."""
        async with self._changed:
            self._drop_stale(policy_version)
            while (groups := self._buffer.take(num_groups, policy_version=policy_version)) is None:
                self._wake()  # stale groups may have freed slots
                await self._changed.wait()
                self._drop_stale(policy_version)
            self._wake()
            ids = [group.order.group_id for group in groups]
            return groups, self._recall.taken(ids, policy_version=policy_version)

    async def book(
        self, group_ids: Sequence[int], step: int, credits: Sequence["ObjectRef[pa.Table]"] = ()
    ) -> list[GroupSummary]:
        """Books taken groups as trained by `step`, and archives all that was settled since the step before,
        dropped groups among them: their summaries, of exactly the rows in `step-NNNNN.parquet` and its parts,
        `step-NNNNN-part-NNN.parquet`.

        `credits` gives at most one table, for these groups' rows: what the step made of their turns, see
        `learners.training.turn_credit_table`. It comes inside a list for the reason that `live` does in
        `release`."""
        is_booked = await self._redo.book() if self._redo else False
        if not is_booked:
            self._buffer.book(group_ids)
            self._recall.trained(group_ids, step=step)
        summaries = self._settled.end_step(
            self._buffer.pop_settled(), step=step, credits=next(iter(credits), None)
        )
        self._recall.keep(self._buffer.ready)  # what is settled and reported no checkpoint will name
        if self._redo and not self._redo.has_steps:
            await self._end_redo(self._redo)
        return summaries

    async def release(
        self, group_ids: Sequence[int], policy_version: int, live: Sequence[ObjectRef] = ()
    ) -> None:
        """Frees the slots of booked groups as soon as the weights of their step, `policy_version`, are live:
        when all of `live` are done, one an engine. Raises what one of them raised, and then frees no slot;
        but not that an engine is gone: it serves no old weights either.

        `live` comes inside a list because Ray waits for a reference that is an argument itself.
        """
        for outcome in await asyncio.gather(*live, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, GONE):
                raise outcome
        self._buffer.release(group_ids)
        if self._redo is None:
            self._drop_stale(policy_version)
        if self._opens_at is not None and policy_version >= self._opens_at:
            self._opens_at = None
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
            "buffer/archive_failures": float(self._settled.num_failures),
            "buffer/journal_failures": float(self._recall.num_failures),
        }

    async def num_lost_in_a_row(self) -> int:
        """Groups since the last one in which any trajectory went to its end and got a reward."""
        return self._buffer.num_lost_in_a_row

    async def state(self) -> dict[str, Any]:
        """JSON for the checkpoint, and everything before it is on the disk: journal and archive."""
        journal = self._recall.account(
            position=self._redo.position if self._redo else None,
            ready=self._buffer.ready,
            settled=self._settled.unreported(self._buffer.settled),
            first_turns=self._begun.first_number,
        )
        state = {**self._buffer.state(), "journal": journal}
        await self._recall.written()
        try:
            await self._settled.flush()
        except TimeoutError:
            logger.warning("the disk hangs: the archive may lack what was settled before this checkpoint")
        return state

    async def has_issued(self) -> bool:
        """Whether any group was ordered in this buffer's life."""
        return self._has_issued

    async def forget_journal(self, before: int) -> None:
        """No checkpoint needs the journal before this entry: `state()["journal"]["first"]` of the oldest."""
        try:
            await asyncio.to_thread(self._recall.forget, before)
        except OSError as error:
            logger.warning("the journal keeps what nobody needs: %s", error)

    async def restore(self, state: Mapping[str, Any] | None, step: int, redo: bool = False) -> int:
        """Goes on from `state()` after `step`: what was open then is issued again first, and the archive
        keeps no row of what is still to come. Not once a group was issued (`has_issued`): its result, begun
        before this, would be taken for one begun after it.

        With `redo` the journal is followed: what was finished is kept, and steps that had begun since are
        taken on the same groups, as the driver asks for them. Returns how many; -1 where the journal does not
        reach back to this state. Without a state: from the beginning.
        """
        assert not self._has_issued, "groups were ordered already"
        if state is not None:
            self._buffer = Buffer.from_state(dict(state), sizes=self._buffer.sizes, source=self._source)
        journal = (state or {}).get("journal", NO_ACCOUNT)
        memory = self._recall.memory(journal["position"]) if redo else None
        if memory is None:
            self._recall.go_back(journal["position"])
        else:
            self._redo = self._redo_of(memory)
            self._opens_at = self._redo.last_version
            await self._redo.remember(journal)
        settled = {one.group.order.group_id for one in self._buffer.settled}
        await self._settled.rewind(step, to_come=lambda ids: self._buffer.to_come(ids) | (settled & set(ids)))
        num_steps = self._redo.num_steps if self._redo else -1
        if self._redo and not self._redo.has_steps:
            await self._end_redo(self._redo)
        await self._notify()
        return num_steps

    async def close(self) -> None:
        """Ends the feed: `next_orders` gives None, and no group is taken in any more. Waits for the archive;
        TimeoutError if the disk hangs."""
        self._closed = True
        await self._notify()
        self._settled.write_part(self._buffer.pop_settled())
        await asyncio.to_thread(self._recall.close)
        await self._settled.flush()

    def _redo_of(self, memory: LoggedEvents) -> LogReplay:
        async def store(rows: pa.Buffer) -> "ObjectRef[pa.Table]":
            return await asyncio.get_running_loop().run_in_executor(self._storing, self._store, rows)

        return LogReplay(
            memory,
            buffer=self._buffer,
            recall=self._recall,
            begun=self._begun,
            store=store,
            accept=self._accept,
        )

    async def _end_redo(self, redo: LogReplay) -> None:
        """No step is left: what came home after the last is there, too, and the run goes on."""
        await redo.finish()
        self._redo = None

    def _drop_stale(self, policy_version: int) -> None:
        num_settled = self._buffer.num_settled
        self._buffer.drop_stale(policy_version=policy_version)
        if self._buffer.num_settled > num_settled:
            self._recall.aged(policy_version)

    def _issue(self) -> GroupOrder | None:
        if self._opens_at is not None:
            return None
        if not self._has_issued:
            self._recall.begin()
        next_group_id = self._buffer.next_group_id
        order = self._buffer.issue()
        if self._buffer.next_group_id > next_group_id:
            self._recall.issued(next_group_id)
        self._has_issued |= order is not None
        return order

    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool:
        is_wanted = self._buffer.put(order, summary=summary, payload=rows)
        if self._buffer.num_settled >= MOST_SETTLED:
            self._settled.write_part(self._buffer.pop_settled())
        return is_wanted

    def _keep(self, delivery: GroupBatch) -> "asyncio.Future[None] | None":
        return self._recall.finished(delivery)

    def _keep_turns(self, group_ids: Sequence[int], rows: pa.Buffer) -> int:
        return self._recall.turns(group_ids, rows)

    def _take_back(self, group_ids: Sequence[int]) -> None:
        self._buffer.take_back(group_ids)

    def _ended(self) -> bool:
        return self._closed
