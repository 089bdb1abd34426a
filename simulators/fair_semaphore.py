"""FIFO counting semaphore for the tasks of one event loop: `acquire(n)` takes n permits atomically; the
capacity can be resized."""

import asyncio
from collections import deque


class FairSemaphore:
    """The semaphore. No request is served before an earlier one, even if it would fit."""

    def __init__(self, capacity: int):
        self.num_free = capacity
        self.capacity = capacity
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, num: int = 1) -> None:
        """Waits for `num` permits and takes them; forever if the capacity stays smaller."""
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
        """Returns permits."""
        self.num_free += num
        self._grant()

    def resize(self, capacity: int) -> None:
        """Changes the capacity; permits that are taken stay taken, so `num_free` may become negative."""
        self.num_free += capacity - self.capacity
        self.capacity = capacity
        self._grant()

    def _grant(self) -> None:
        while self._queue and self._queue[0][0] <= self.num_free:
            num, granted = self._queue.popleft()
            if not granted.cancelled():
                self.num_free -= num
                granted.set_result(None)
