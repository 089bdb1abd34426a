"""Work source: issues group orders to rollout actors by long poll and accepts finished groups. Base of the
buffer actor (training) and of the fixed work source (evaluation).

A work source lives in one Ray actor, on one event loop. Subclasses decide which orders there are and what is
done with the groups.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, takewhile

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.gc_freeze import freeze_heap
from actors.group_transport import GroupBatch
from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.group_store import GroupRows, StoredRows, rows_of
from learners.buffer.partial_rollouts import PartialRollouts

logger = logging.getLogger(__name__)

POLL_S = 5.0
"""Longest wait of one `next_orders`. A caller without a reply for much longer has lost its work source."""
MAX_NAMED = 8
"""Groups of one kind that a text names; thousands may be in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReassignedGroup:
    """A group that was taken from its worker, to be issued again."""

    group_id: int
    worker: str
    held_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Assignment:
    worker: str
    at_s: float
    """By `time.monotonic()`."""


class WorkSource(ABC):
    """Issues orders by long poll and accepts finished groups.

    A worker (a rollout actor's process) holds a group for at most `group_timeout_s`. Then the group is issued
    to the next worker that asks, whether or not the first is alive; the first result to arrive is accepted.
    """

    def __init__(self, *, group_timeout_s: float) -> None:
        self.num_reassigned = 0
        """Groups that were taken from their workers, which had died or held them too long."""
        lock = asyncio.Lock()
        self._changed = asyncio.Condition(lock)
        self._has_orders = asyncio.Condition(lock)
        """Orders may be available: see `_wake`."""
        self._group_timeout_s = group_timeout_s
        self._assignments: dict[int, _Assignment] = {}
        """By group, oldest first."""
        self._num_losses: Counter[str] = Counter()
        """Calls of `reassign_groups_of`, by worker."""
        self._draining: set[str] = set()
        self._reassigned: list[ReassignedGroup] = []
        self._partial_rollouts = PartialRollouts()
        self._watch: asyncio.Task[None] | None = None
        self._storing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        """One thread, so that batches are accepted in the order of their arrival."""
        freeze_heap()

    async def next_orders(self, worker: str, max_groups: int) -> list[GroupOrder] | None:
        """Up to `max_groups` orders for `worker`. `[]`: none within 5 s, ask again. None: the end of the work
        source, or of this worker's work for it."""
        assert max_groups >= 1
        if self._watch is None:  # here, since the constructor runs before the event loop
            self._watch = asyncio.create_task(self._requeue_overdue())
        orders: list[GroupOrder] = []
        num_losses = self._num_losses[worker]
        try:
            async with self._has_orders, asyncio.timeout(POLL_S):
                while not self._has_ended():
                    if worker in self._draining:
                        self._has_orders.notify()
                        return None
                    if self._num_losses[worker] != num_losses:
                        self._has_orders.notify()
                        return []  # the caller died while it waited: an order would be lost with it
                    while len(orders) < max_groups and (order := self._issue()) is not None:
                        num_turns = self._partial_rollouts.count(order.group_id)
                        orders.append(replace(order, num_completed_turns=num_turns))
                        self._assignments.pop(order.group_id, None)  # the new one belongs at the end
                        self._assignments[order.group_id] = _Assignment(worker=worker, at_s=time.monotonic())
                    if orders:
                        self._has_orders.notify()
                        return orders
                    await self._has_orders.wait()
        except TimeoutError:
            await self._notify()  # this caller may have been woken at this moment, instead of another
            return []
        return None

    async def put(self, batch: GroupBatch) -> list[bool]:
        """Accepts finished groups; False for each that is not open any more. When this returns, the accepted
        groups survive this process, if the work source keeps a log.

        A batch has no effect until its rows are stored: of a group that arrives twice, or is reassigned
        meanwhile, the copy that is stored first is accepted.

        The rows travel by value and are put into the object store here, without being read: an object dies
        with the process that put it, so that one put by a rollout actor would not survive the actor (Ray 2.56
        removed `_owner` from `ray.put`).
        """
        ref = await self._stored(batch.rows)
        if self._has_ended():
            return [False] * len(batch.orders)
        accepted = []
        all_rows = rows_of(ref, num_rows=batch.num_rows)
        for order, summary, rows in zip(batch.orders, batch.summaries, all_rows, strict=True):
            accepted.append(self._accept(order, summary, rows))
            if accepted[-1]:  # perhaps from an earlier worker than the one that holds it now
                self._assignments.pop(order.group_id, None)
                self._partial_rollouts.forget(order.group_id)
        # Without an await in between: a step that takes these groups is logged after them.
        logged = self._log_groups(batch) if any(accepted) else None
        await self._notify()
        if logged is not None:
            await logged
        return accepted

    async def publish_turns(self, worker: str, group_ids: Sequence[int], rows: pa.Buffer) -> None:
        """Stores completed turns of unfinished dialogues, see `actors.partial_rollouts`; `group_ids` has the
        group of each turn. Turns of groups that another worker holds now are ignored, so that a dialogue has
        one source."""
        held = self._assignments
        own = [one for one in group_ids if one in held and held[one].worker == worker]
        if own and not self._has_ended():
            self._partial_rollouts.add(own, rows, number=self._log_turns(own, rows))

    async def partial_rollouts(self, group_ids: Sequence[int]) -> list[list[pa.Buffer]]:
        """For each group the blocks of rows with its completed turns; they also hold turns of other
        groups."""
        return [self._partial_rollouts.rows(group_id) for group_id in group_ids]

    async def reassign_groups_of(self, worker: str) -> list[int]:
        """Requeues the unfinished groups of a dead worker; returns their ids."""
        self._num_losses[worker] += 1
        lost = [group_id for group_id, one in self._assignments.items() if one.worker == worker]
        await self._reassign(lost)
        return lost

    async def drain(self, worker: str) -> None:
        """Ends the orders of `worker`: its `next_orders` return None. It keeps the groups that it has."""
        self._draining.add(worker)
        async with self._has_orders:
            self._has_orders.notify_all()  # it may be the one that waits

    async def pop_reassigned(self) -> list[ReassignedGroup]:
        """The groups that were taken from their workers since the last call, in that order."""
        reassigned, self._reassigned = self._reassigned, []
        return reassigned

    async def _requeue_overdue(self) -> None:
        """Reassigns each group that a worker has held for `group_timeout_s`; runs until the process ends.
        Whether the worker is alive is not checked: one that hangs looks like one that works."""
        while True:
            await self._reassign([*takewhile(self._is_overdue, self._assignments)])
            oldest = next(iter(self._assignments.values()), None)
            held_s = time.monotonic() - oldest.at_s if oldest else 0.0
            await asyncio.sleep(max(0.0, self._group_timeout_s - held_s))

    def _is_overdue(self, group_id: int) -> bool:
        return time.monotonic() - self._assignments[group_id].at_s >= self._group_timeout_s

    async def _reassign(self, group_ids: Sequence[int]) -> None:
        """Takes groups from their workers, for the next ones that ask."""
        if not group_ids:
            return
        for group_id in group_ids:
            held = self._assignments.pop(group_id)
            held_s = time.monotonic() - held.at_s
            self._reassigned.append(ReassignedGroup(group_id=group_id, worker=held.worker, held_s=held_s))
            logger.warning("group %d: reassigned after %.1f s with %s", group_id, held_s, held.worker)
        self.num_reassigned += len(group_ids)
        self._requeue(group_ids)
        await self._notify()

    def _describe_open(self, waiting: Sequence[int]) -> str:
        """Text about the open groups, those held longest first, and about `waiting`, which no worker
        holds."""
        now = time.monotonic()
        held = [
            f"group {group_id} with {one.worker} for {now - one.at_s:.0f} s"
            for group_id, one in islice(self._assignments.items(), MAX_NAMED)
        ]
        idle = [f"group {group_id} waits to be issued again" for group_id in waiting[:MAX_NAMED]]
        num_others = len(self._assignments) + len(waiting) - len(held) - len(idle)
        others = [f"and {num_others} others"] if num_others else []
        return "; ".join([*held, *idle, *others]) or "no rollout actor has asked for orders"

    async def _stored(self, rows: pa.Buffer) -> "ObjectRef[pa.Table]":
        """Reference to these rows. A full object store writes to disk first; meanwhile other calls are
        served."""
        return await asyncio.get_running_loop().run_in_executor(self._storing, self._store, rows)

    def _store(self, rows: pa.Buffer) -> "ObjectRef[pa.Table]":
        """Runs in the storing thread."""
        return ray.put(StoredRows(rows))

    async def _notify(self) -> None:
        async with self._changed:
            self._wake()

    def _wake(self) -> None:
        """Wakes waiting calls after a change; the caller has the lock.

        Of the calls that wait for orders one is woken, which wakes the next if it got any: of a thousand
        rollout actors nearly all would wake in vain at every group that arrives.
        """
        self._changed.notify_all()
        if self._has_ended():
            self._has_orders.notify_all()
        else:
            self._has_orders.notify()

    @abstractmethod
    def _issue(self) -> GroupOrder | None:
        """The next order; None if there is none now."""

    @abstractmethod
    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool:
        """Accepts a finished group; False if it is not open any more."""

    def _log_groups(self, batch: GroupBatch) -> "asyncio.Future[None] | None":
        """Starts to log an accepted batch; the future is done when it is on disk. None without a log."""
        return None

    def _log_turns(self, group_ids: Sequence[int], rows: pa.Buffer) -> int:
        """Starts to log completed turns; returns the number of the entry, 0 without a log."""
        return 0

    @abstractmethod
    def _requeue(self, group_ids: Sequence[int]) -> None:
        """These held groups wait to be issued again."""

    @abstractmethod
    def _has_ended(self) -> bool: ...
