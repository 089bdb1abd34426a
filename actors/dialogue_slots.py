"""FIFO counting semaphore for the dialogues of one event loop: `acquire(n)` takes n slots atomically; the
capacity can be resized."""

import asyncio
from collections import deque


class DialogueSlots:
    """The semaphore. No request is served before an earlier one, even if it would fit."""

    def __init__(self, capacity: int):
        self.num_free = capacity
        self._capacity = capacity
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, num: int = 1) -> None:
        """Waits for `num` slots and takes them. Raises ValueError if the capacity is smaller."""
        if num > self._capacity:
            raise ValueError(f"{num} dialogues do not fit dialogues_per_actor={self._capacity}")
        if not self._queue and num <= self.num_free:
            self.num_free -= num
            return
        granted = asyncio.get_running_loop().create_future()
        self._queue.append((num, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # granted in the moment of the cancellation
                self.release(num)
            elif (num, granted) in self._queue:
                self._queue.remove((num, granted))
                self._grant()
            raise

    def release(self, num: int = 1) -> None:
        """Returns slots."""
        self.num_free += num
        self._grant()

    def resize(self, capacity: int) -> None:
        """Changes the capacity; slots that are taken stay taken, so `num_free` may become negative."""
        self.num_free += capacity - self._capacity
        self._capacity = capacity
        self._grant()

    def _grant(self) -> None:
        while self._queue and self._queue[0][0] <= self.num_free:
            num, granted = self._queue.popleft()
            if not granted.cancelled():
                self.num_free -= num
                granted.set_result(None)


class SlotLease:
    """A dialogue's slot, which its creator has acquired. With a `slice_s` it is released after that time and
    acquired again before the next turn, behind the dialogues that wait by then."""

    def __init__(self, slots: DialogueSlots, *, slice_s: float | None):
        self._slots = slots
        self._slice_s = slice_s
        self._start()

    async def renew(self) -> None:
        """Called before each turn: acquires a slot if the lease has run out."""
        if not self._is_held:
            await self._slots.acquire()
            self._start()

    def end(self) -> None:
        """Releases the slot, if it is held: the dialogue is over."""
        if self._timer is not None:
            self._timer.cancel()
        self._release()

    def _start(self) -> None:
        self._is_held = True
        self._timer: asyncio.TimerHandle | None = None
        if self._slice_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._slice_s, self._release)

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._slots.release()
