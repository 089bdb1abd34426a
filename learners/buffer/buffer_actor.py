"""The buffer as a Ray actor: long polls around `Buffer`, the trajectory archive, and the write-ahead log from
which a run resumes after a crash (docs/resume.md).

`ray.remote` is applied in cluster/. One event loop; only the archive fetches tables here.
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
from actors.group_transport import FinishedGroup, GroupBatch
from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.archive import MAX_RESOLVED, Archive
from learners.buffer.buffer import Buffer, BufferSizes
from learners.buffer.group_store import GroupRows
from learners.buffer.ledger import Ledger
from learners.buffer.log.events import EMPTY_LOG_STATE, NO_EVENTS, BufferEventLog, LoggedEvents
from learners.buffer.log.replay import LogReplay
from learners.buffer.work_source import WorkSource
from simulators.task import TaskSource

logger = logging.getLogger(__name__)


class BufferActor(WorkSource):
    """The work source of training."""

    def __init__(
        self,
        sizes: BufferSizes,
        *,
        source: TaskSource,
        run_folder: Path,
        group_timeout_s: float,
        event_log: BufferEventLog | None = None,
    ):
        """`event_log` None means the log in `run_folder`."""
        super().__init__(group_timeout_s=group_timeout_s)
        self._source = source
        self._buffer = Buffer(sizes, source=source)
        self._archive = Archive(run_folder / "trajectories")
        self._event_log = event_log or BufferEventLog(run_folder / "journal")
        self._replay = self._make_replay(NO_EVENTS)
        self._issues_from_version: int | None = None
        """The policy version that must be live before orders are issued; None if it is."""
        self._has_issued = False
        self._closed = False

    async def take(self, num_groups: int, policy_version: int, timeout_s: float) -> list[FinishedGroup]:
        """The oldest `num_groups` groups that a step on `policy_version` may train, with `GroupRows` as
        payloads. Raises TimeoutError that names what it waited for."""
        if (groups := await self._replay.take(policy_version=policy_version)) is not None:
            return groups
        try:
            async with asyncio.timeout(timeout_s):
                await self._event_log.written()  # on a full disk no step begins
                groups, logged = await self._take(num_groups, policy_version=policy_version)
        except TimeoutError:
            ready = f"{self._buffer.num_ready} of {num_groups} groups are ready after {timeout_s:.0f} s"
            dropped = ", ".join(
                f"{reason} {count}" for reason, count in self._buffer.ledger().dropped.items()
            )
            error = self._event_log.log.disk_error
            disk = f"the write-ahead log waits for the disk: {error}; " if error else ""
            open_groups = self._describe_open(self._buffer.ids("waiting"))
            raise TimeoutError(f"{disk}{ready}; dropped so far: {dropped}; {open_groups}") from None
        await logged  # no learner sees groups that a crash could undo
        return groups

    async def _take(
        self, num_groups: int, *, policy_version: int
    ) -> tuple[list[FinishedGroup], asyncio.Future[None]]:
        """The groups, and a future that is done when the event is on disk."""
        async with self._changed:
            self._drop_stale(policy_version)
            while (groups := self._buffer.take(num_groups, policy_version=policy_version)) is None:
                self._wake()  # stale groups may have freed slots
                await self._changed.wait()
                self._drop_stale(policy_version)
            self._wake()
            ids = [group.order.group_id for group in groups]
            return groups, self._event_log.taken(ids, policy_version=policy_version)

    async def mark_trained(
        self, group_ids: Sequence[int], step: int, credits: Sequence["ObjectRef[pa.Table]"] = ()
    ) -> list[GroupSummary]:
        """Marks taken groups as trained by `step`, and archives all groups that were resolved since the step
        before, dropped ones included. Returns their summaries, which belong to exactly the rows in
        `step-NNNNN.parquet` and its parts, `step-NNNNN-part-NNN.parquet`.

        `credits` holds at most one reference, to the step's `learners.training.turn_credit_table`. It comes
        inside a list for the reason that `live` does in `release`."""
        if not await self._replay.mark_trained():
            self._buffer.mark_trained(group_ids)
            self._event_log.trained(group_ids, step=step)
        resolved = self._buffer.pop_resolved()
        summaries = self._archive.end_step(resolved, step=step, credits=next(iter(credits), None))
        self._event_log.keep_positions(self._buffer.ids("ready"))  # reported groups are in no checkpoint
        await self._replay.finish()
        return summaries

    async def release(
        self, group_ids: Sequence[int], policy_version: int, live: Sequence[ObjectRef] = ()
    ) -> None:
        """Frees the slots of trained groups as soon as the weights of their step, `policy_version`, are live:
        when all of `live` are done, one per engine. An exception of one is raised here, and no slot is freed,
        unless it says that the engine has ended: such an engine serves no old weights either.

        `live` comes inside a list because Ray would wait for references that are arguments themselves.
        """
        for outcome in await asyncio.gather(*live, return_exceptions=True):
            has_ended = isinstance(outcome, RayActorError | EngineGoneError)
            if isinstance(outcome, BaseException) and not has_ended:
                raise outcome
        self._buffer.release(group_ids)
        if not self._replay.is_active:
            self._drop_stale(policy_version)
        if self._issues_from_version is not None and policy_version >= self._issues_from_version:
            self._issues_from_version = None
        await self._notify()

    async def ledger(self) -> Ledger:
        """The outcome of every trajectory."""
        return self._buffer.ledger()

    async def metrics(self) -> dict[str, float]:
        """The ledger's keys, and the buffer's own."""
        return {
            **self._buffer.ledger().metrics(),
            "buffer/groups_ready": float(self._buffer.num_ready),
            "buffer/slots_taken": float(self._buffer.num_open),
            "buffer/puts_ignored": float(self._buffer.num_puts_ignored),
            "buffer/reissued": float(self.num_reassigned),
            "buffer/archive_failures": float(self._archive.num_failures),
            "buffer/journal_failures": float(self._event_log.log.num_failures),
        }

    async def num_lost_in_a_row(self) -> int:
        """Groups since the last one with a trajectory that can be trained."""
        return self._buffer.num_lost_in_a_row

    async def state(self) -> dict[str, Any]:
        """JSON for a checkpoint. When this returns, everything before it is on disk: log and archive."""
        log_state = self._event_log.state(
            position=self._replay.position,
            ready=self._buffer.ids("ready"),
            unreported=self._archive.unreported(self._buffer.resolved),
            first_turns=self._partial_rollouts.first_number,
        )
        state = {**self._buffer.state(), "journal": log_state}
        await self._event_log.written()
        try:
            await self._archive.flush()
        except TimeoutError:
            logger.warning("the disk hangs: the archive may lack groups resolved before this checkpoint")
        return state

    async def has_issued(self) -> bool:
        """Whether this process has issued an order."""
        return self._has_issued

    async def trim_log(self, before: int) -> None:
        """Deletes log entries before this one: `state()["journal"]["first"]` of the oldest checkpoint."""
        try:
            await asyncio.to_thread(self._event_log.log.trim, before)
        except OSError as error:
            logger.warning("unneeded segments of the write-ahead log could not be deleted: %s", error)

    async def restore(self, state: Mapping[str, Any] | None, step: int, replay: bool = False) -> int:
        """Resumes from `state()` after `step`, None means from the beginning: open groups are issued again
        first, and the archive loses the rows of unresolved groups. Not after an order was issued
        (`has_issued`): its result would be taken for one of a later order.

        With `replay` the log is read: finished groups are kept, and the steps that had begun since are
        repeated on the same groups when the driver asks for them. Returns their number; -1 if the log does
        not reach back to this state.
        """
        assert not self._has_issued, "groups were ordered already"
        if state is not None:
            self._buffer = Buffer.from_state(dict(state), sizes=self._buffer.sizes, source=self._source)
        log_state = EMPTY_LOG_STATE if state is None else state["journal"]
        events = self._event_log.read(log_state["position"]) if replay else None
        self._replay = self._make_replay(events or NO_EVENTS)
        if events is None:
            self._event_log.rewind(log_state["position"])
        else:
            self._issues_from_version = self._replay.last_version
            await self._replay.restore(log_state)
        resolved = {group.order.group_id for group in self._buffer.resolved}
        await self._archive.rewind(
            step, unresolved=lambda ids: self._buffer.unresolved(ids) | (resolved & set(ids))
        )
        await self._replay.finish()
        await self._notify()
        return -1 if events is None else self._replay.num_steps

    async def close(self) -> None:
        """Ends the work source: `next_orders` returns None, and no group is accepted any more. Waits for the
        archive; raises TimeoutError if the disk hangs."""
        self._closed = True
        await self._notify()
        self._archive.write_part(self._buffer.pop_resolved())
        await asyncio.to_thread(self._event_log.log.close)
        await self._archive.flush()

    def _make_replay(self, events: LoggedEvents) -> LogReplay:
        return LogReplay(
            events,
            buffer=self._buffer,
            event_log=self._event_log,
            partial_rollouts=self._partial_rollouts,
            store=self._stored,
            accept=self._accept,
        )

    def _drop_stale(self, policy_version: int) -> None:
        num_resolved = len(self._buffer.resolved)
        self._buffer.drop_stale(policy_version=policy_version)
        if len(self._buffer.resolved) > num_resolved:
            self._event_log.aged(policy_version)

    def _issue(self) -> GroupOrder | None:
        if self._issues_from_version is not None:
            return None
        if not self._has_issued:
            self._event_log.start()
        next_group_id = self._buffer.next_group_id
        order = self._buffer.issue()
        if self._buffer.next_group_id > next_group_id:
            self._event_log.issued(next_group_id)
        self._has_issued |= order is not None
        return order

    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool:
        is_accepted = self._buffer.put(order, summary=summary, payload=rows)
        if len(self._buffer.resolved) >= MAX_RESOLVED:
            self._archive.write_part(self._buffer.pop_resolved())
        return is_accepted

    def _log_groups(self, batch: GroupBatch) -> "asyncio.Future[None] | None":
        return self._event_log.finished(batch)

    def _log_turns(self, group_ids: Sequence[int], rows: pa.Buffer) -> int:
        return self._event_log.turns(group_ids, rows)

    def _requeue(self, group_ids: Sequence[int]) -> None:
        self._buffer.requeue(group_ids)

    def _has_ended(self) -> bool:
        return self._closed
