"""What a rollout actor asks for orders and gives results to: the part that training and evaluation share.

A feed lives in one Ray actor, on one event loop. It refuses to know what becomes of a result.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.trajectory import GroupOrder, GroupSummary

POLL_S = 5.0
"""Longest wait of one `next_orders`; an asker that hears nothing for much longer has lost its feed."""


class Feed(ABC):
    """Orders out by long poll, results in; subclasses say which."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._issued_at: dict[int, float] = {}
        """Group id to `time.monotonic()` of its latest issue."""
        self._num_forgets: Counter[str] = Counter()

    async def next_orders(self, holder: str, max_groups: int) -> list[GroupOrder] | None:
        """Up to `max_groups` orders for `holder`. `[]`: none within 5 s, ask again. None: the end."""
        assert max_groups >= 1
        orders: list[GroupOrder] = []
        num_forgets = self._num_forgets[holder]
        try:
            async with self._changed, asyncio.timeout(POLL_S):
                while not self._ended():
                    if self._num_forgets[holder] != num_forgets:
                        return []  # the asker died while it waited: an order given now would be lost with it
                    while len(orders) < max_groups and (order := self._issue(holder)) is not None:
                        orders.append(order)
                        self._issued_at[order.group_id] = time.monotonic()
                    if orders:
                        return orders
                    await self._changed.wait()
        except TimeoutError:
            return []
        return None

    async def put(self, order: GroupOrder, summary: GroupSummary, table: pa.Table) -> bool:
        """Takes a finished group in. False where it was not wanted any more.

        The table comes by value and is put into the object store here: an object dies with the process that
        put it, so one put by a rollout actor would not outlive it (Ray 2.56 took `_owner` out of `ray.put`).
        """
        accepted = self._accept(order, summary, ray.put(table))
        await self._notify()
        return accepted

    async def forget(self, holder: str) -> list[int]:
        """Gives up on a dead holder; its unfinished groups (returned by id) go to whoever asks next."""
        self._num_forgets[holder] += 1
        lost = self._give_up(holder)
        await self._notify()
        return lost

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    @abstractmethod
    def _issue(self, holder: str) -> GroupOrder | None: ...

    @abstractmethod
    def _accept(self, order: GroupOrder, summary: GroupSummary, ref: ObjectRef) -> bool: ...

    @abstractmethod
    def _give_up(self, holder: str) -> list[int]: ...

    @abstractmethod
    def _ended(self) -> bool: ...
