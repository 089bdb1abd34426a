"""What a rollout actor asks for orders and gives results to: the part that training and evaluation share.

A feed lives in one Ray actor, on one event loop. It refuses to know what becomes of a result.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.delivery import Delivery, read_rows
from actors.heap import freeze_heap
from actors.trajectory import GroupOrder, GroupSummary

logger = logging.getLogger(__name__)

POLL_S = 5.0
"""Longest wait of one `next_orders`; an asker that hears nothing for much longer has lost its feed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRows:
    """A group's table, as rows of a table in the object store that groups which came together share. Awaited,
    it gives the group's table."""

    ref: "ObjectRef[pa.Table]"
    first_row: int
    num_rows: int

    def of(self, table: pa.Table) -> pa.Table:
        """The group's part of `ref`'s table."""
        return table.slice(self.first_row, self.num_rows)

    def __await__(self) -> Generator[Any, None, pa.Table]:
        table = yield from self.ref.__await__()
        return self.of(table)


def fetch_groups(groups: Sequence[GroupRows], *, timeout_s: float) -> list[pa.Table]:
    """The groups' tables. What came together is fetched once. Raises as `ray.get` does."""
    refs = list(dict.fromkeys(group.ref for group in groups))
    tables = dict(zip(refs, ray.get(refs, timeout=timeout_s), strict=True))
    return [group.of(tables[group.ref]) for group in groups]


class _StoredRows:
    """Rows on their way into the object store, where they lie as they came; who fetches them gets a table."""

    def __init__(self, rows: pa.Buffer):
        self._rows = rows

    def __reduce__(self) -> tuple[Callable[[pa.Buffer], pa.Table], tuple[pa.Buffer]]:
        return read_rows, (self._rows,)


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


class Feed(ABC):
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
        self._lost: list[LostGroup] = []
        self._watch: asyncio.Task[None] | None = None
        self._storing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        """One thread, so that deliveries are accepted in the order in which they came."""
        freeze_heap()

    async def next_orders(self, holder: str, max_groups: int) -> list[GroupOrder] | None:
        """Up to `max_groups` orders for `holder`. `[]`: none within 5 s, ask again. None: the end."""
        assert max_groups >= 1
        if self._watch is None:  # here, since it needs the event loop, which comes after the constructor
            self._watch = asyncio.create_task(self._take_back_overdue())
        orders: list[GroupOrder] = []
        num_forgets = self._num_forgets[holder]
        try:
            async with self._has_orders, asyncio.timeout(POLL_S):
                while not self._ended():
                    if self._num_forgets[holder] != num_forgets:
                        self._has_orders.notify()
                        return []  # the asker died while it waited: an order given now would be lost with it
                    while len(orders) < max_groups and (order := self._issue()) is not None:
                        orders.append(order)
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

    async def put(self, delivery: Delivery) -> list[bool]:
        """Takes finished groups in. False for each that was not wanted any more.

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
        ends = accumulate(delivery.num_rows)
        accepted = []
        for order, summary, num_rows, end in zip(
            delivery.orders, delivery.summaries, delivery.num_rows, ends, strict=True
        ):
            rows = GroupRows(ref=ref, first_row=end - num_rows, num_rows=num_rows)
            accepted.append(self._accept(order, summary, rows))
            if accepted[-1]:  # perhaps from an earlier holder than the one that has it now
                self._issues.pop(order.group_id, None)
        await self._notify()
        return accepted

    async def forget(self, holder: str) -> list[int]:
        """Gives up on a dead holder; its unfinished groups (returned by id) go to whoever asks next."""
        self._num_forgets[holder] += 1
        lost = [group_id for group_id, issue in self._issues.items() if issue.holder == holder]
        await self._reissue(lost)
        return lost

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

    def _store(self, rows: pa.Buffer) -> "ObjectRef[pa.Table]":
        """In a thread of its own."""
        return ray.put(_StoredRows(rows))

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

    @abstractmethod
    def _take_back(self, group_ids: Sequence[int]) -> None:
        """These groups, which somebody holds, wait to be issued again."""

    @abstractmethod
    def _ended(self) -> bool: ...
