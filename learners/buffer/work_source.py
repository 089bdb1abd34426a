"""Work source: hands group orders to rollout actors by long poll and takes finished groups back. Shared by
training and evaluation.

A feed lives in one Ray actor, on one event loop. It refuses to know what becomes of a result.
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
"""Longest wait of one `next_orders`; an asker that hears nothing for much longer has lost its feed."""
MOST_NAMED = 8
"""Groups of one kind in a line for people; thousands may be in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LostGroup:
    """A group that was taken from its holder, to be issued again."""

    group_id: int
    holder: str
    held_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Issue:
    holder: str
    at_s: float
    """By `time.monotonic()`."""


class WorkSource(ABC):
    """Orders out by long poll, results in; subclasses say which.

    A holder keeps a group for `group_timeout_s` at most. Then it is given to the next who asks, whatever has
    become of its holder; whose result comes home first is taken.
    """

    def __init__(self, *, group_timeout_s: float) -> None:
        self.num_reissued = 0
        """Groups that were taken from their holders: those had died, or kept them too long."""
        lock = asyncio.Lock()
        self._changed = asyncio.Condition(lock)
        self._has_orders = asyncio.Condition(lock)
        """May be so: see `_wake`."""
        self._group_timeout_s = group_timeout_s
        self._issues: dict[int, _Issue] = {}
        """Who works on which group since when; the oldest first."""
        self._num_forgets: Counter[str] = Counter()
        self._dismissed: set[str] = set()
        self._lost: list[LostGroup] = []
        self._begun = PartialRollouts()
        """What is over of the dialogues that are under way, for whoever gets their groups next."""
        self._watch: asyncio.Task[None] | None = None
        self._storing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        """One thread, so that deliveries are accepted in the order in which they came."""
        freeze_heap()

    async def next_orders(self, holder: str, max_groups: int) -> list[GroupOrder] | None:
        """Up to `max_groups` orders for `holder`. `[]`: none within 5 s, ask again. None: the end, of the
        feed or of this holder's work for it."""
        assert max_groups >= 1
        if self._watch is None:  # here, since it needs the event loop, which comes after the constructor
            self._watch = asyncio.create_task(self._take_back_overdue())
        orders: list[GroupOrder] = []
        num_forgets = self._num_forgets[holder]
        try:
            async with self._has_orders, asyncio.timeout(POLL_S):
                while not self._ended():
                    if holder in self._dismissed:
                        self._has_orders.notify()
                        return None
                    if self._num_forgets[holder] != num_forgets:
                        self._has_orders.notify()
                        return []  # the asker died while it waited: an order given now would be lost with it
                    while len(orders) < max_groups and (order := self._issue()) is not None:
                        orders.append(replace(order, num_completed_turns=self._begun.count(order.group_id)))
                        self._issues.pop(order.group_id, None)  # the new one belongs at the end
                        self._issues[order.group_id] = _Issue(holder=holder, at_s=time.monotonic())
                    if orders:
                        self._has_orders.notify()
                        return orders
                    await self._has_orders.wait()
        except TimeoutError:
            await self._notify()  # it may have been woken in this very moment, in place of another
            return []
        return None

    async def put(self, delivery: GroupBatch) -> list[bool]:
        """Takes finished groups in. False for each that was not wanted any more. What is returned from here
        outlives this process, where the feed keeps anything.

        Until its rows are stored nothing is known of a delivery: a group that is issued again meanwhile, or
        comes twice, is taken from whoever is stored first.

        The rows come by value and are put into the object store here, copied once and not read: an object
        dies with the process that put it, so one put by a rollout actor would not outlive it (Ray 2.56 took
        `_owner` out of `ray.put`). From another node they travel once, to this one.
        """
        # A full object store writes to disk first; meanwhile others ask for orders.
        ref = await asyncio.get_running_loop().run_in_executor(self._storing, self._store, delivery.rows)
        if self._ended():
            return [False] * len(delivery.orders)
        accepted = []
        all_rows = rows_of(ref, num_rows=delivery.num_rows)
        for order, summary, rows in zip(delivery.orders, delivery.summaries, all_rows, strict=True):
            accepted.append(self._accept(order, summary, rows))
            if accepted[-1]:  # perhaps from an earlier holder than the one that has it now
                self._issues.pop(order.group_id, None)
                self._begun.forget(order.group_id)
        # In the same moment: a step that takes these groups is written down after them.
        kept = self._keep(delivery) if any(accepted) else None
        await self._notify()
        if kept is not None:
            await kept
        return accepted

    async def publish_turns(self, holder: str, group_ids: Sequence[int], rows: pa.Buffer) -> None:
        """Turns of dialogues under way are over, see `actors.partial_rollouts`; `group_ids` are their
        groups', turn by turn. Those of a group that somebody else has now are not wanted: two would tell one
        dialogue."""
        mine = [one for one in group_ids if one in self._issues and self._issues[one].holder == holder]
        if mine and not self._ended():
            self._begun.add(mine, rows, number=self._keep_turns(mine, rows))

    async def partial_rollouts(self, group_ids: Sequence[int]) -> list[list[pa.Buffer]]:
        """The turns of these groups' dialogues that are over, among those of others."""
        return [self._begun.rows(group_id) for group_id in group_ids]

    async def forget(self, holder: str) -> list[int]:
        """Gives up on a dead holder; its unfinished groups (returned by id) go to whoever asks next."""
        self._num_forgets[holder] += 1
        lost = [group_id for group_id, issue in self._issues.items() if issue.holder == holder]
        await self._reissue(lost)
        return lost

    async def dismiss(self, holder: str) -> None:
        """Gives `holder` no more orders: whenever it asks it is told of the end. It keeps what it has."""
        self._dismissed.add(holder)
        async with self._has_orders:
            self._has_orders.notify_all()  # it may be the one that waits

    async def pop_lost(self) -> list[LostGroup]:
        """The groups that were taken from their holders since the last call, in that order."""
        lost, self._lost = self._lost, []
        return lost

    async def _take_back_overdue(self) -> None:
        """Waits until the group that has been out for longest is overdue, and has it issued again; for ever.

        Asks nobody whether the holder lives: one that hangs looks just like one that works.
        """
        while True:
            await self._reissue([*takewhile(self._is_overdue, self._issues)])
            oldest = next(iter(self._issues.values()), None)
            held_s = time.monotonic() - oldest.at_s if oldest else 0.0
            await asyncio.sleep(max(0.0, self._group_timeout_s - held_s))

    def _is_overdue(self, group_id: int) -> bool:
        return time.monotonic() - self._issues[group_id].at_s >= self._group_timeout_s

    async def _reissue(self, group_ids: Sequence[int]) -> None:
        """Takes groups from their holders. They go to whoever asks next."""
        if not group_ids:
            return
        for group_id in group_ids:
            issue = self._issues.pop(group_id)
            held_s = time.monotonic() - issue.at_s
            self._lost.append(LostGroup(group_id=group_id, holder=issue.holder, held_s=held_s))
            logger.warning("group %d: %s had it for %.1f s: issued again", group_id, issue.holder, held_s)
        self.num_reissued += len(group_ids)
        self._take_back(group_ids)
        await self._notify()

    def _stuck(self, waiting: Sequence[int]) -> str:
        """For people: the groups that are waited for, those that have been out for longest first, and
        `waiting`, which nobody holds."""
        now = time.monotonic()
        held = [
            f"group {group_id} with {issue.holder} for {now - issue.at_s:.0f} s"
            for group_id, issue in islice(self._issues.items(), MOST_NAMED)
        ]
        idle = [f"group {group_id} waits to be issued again" for group_id in waiting[:MOST_NAMED]]
        num_others = len(self._issues) + len(waiting) - len(held) - len(idle)
        others = [f"and {num_others} others"] if num_others else []
        return "; ".join([*held, *idle, *others]) or "nobody has asked for orders"

    def _store(self, rows: pa.Buffer) -> "ObjectRef[pa.Table]":
        """In a thread of its own."""
        return ray.put(StoredRows(rows))

    async def _notify(self) -> None:
        async with self._changed:
            self._wake()

    def _wake(self) -> None:
        """Something has changed; the caller has the lock.

        Of those who wait for orders one is woken, who wakes the next if it got any: of a thousand rollout
        actors all but a few would wake for nothing at every group that comes home.
        """
        self._changed.notify_all()
        if self._ended():
            self._has_orders.notify_all()
        else:
            self._has_orders.notify()

    @abstractmethod
    def _issue(self) -> GroupOrder | None: ...

    @abstractmethod
    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool: ...

    def _keep(self, delivery: GroupBatch) -> "asyncio.Future[None] | None":
        """What was taken in is kept beyond this process when this is done. None: it is not."""
        return None

    def _keep_turns(self, group_ids: Sequence[int], rows: pa.Buffer) -> int:
        """Turns are kept beyond this process as the entry of this number; 0: they are not."""
        return 0

    @abstractmethod
    def _take_back(self, group_ids: Sequence[int]) -> None:
        """These groups, which somebody holds, wait to be issued again."""

    @abstractmethod
    def _ended(self) -> bool: ...
