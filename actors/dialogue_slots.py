"""Room for dialogues on one event loop: so many places, given to whoever waits longest."""

import asyncio
from collections import deque


class DialogueSlots:
    """`num_places` places. Who wants several gets them together; nobody who came later is served before."""

    def __init__(self, num_places: int):
        self.num_free = num_places
        self._num_places = num_places
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, num: int = 1) -> None:
        """Waits for `num` places and takes them. Raises ValueError where there are not so many at all."""
        if num > self._num_places:
            raise ValueError(f"{num} dialogues do not fit dialogues_per_actor={self._num_places}")
        if not self._queue and num <= self.num_free:
            self.num_free -= num
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((num, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # they were given to it in the moment of its cancellation
                self.leave(num)
            elif (num, turn) in self._queue:
                self._queue.remove((num, turn))
                self._admit()
            raise

    def leave(self, num: int = 1) -> None:
        """Gives places back."""
        self.num_free += num
        self._admit()

    def resize(self, num_places: int) -> None:
        """More or fewer places from now on; nobody inside is sent away."""
        self.num_free += num_places - self._num_places
        self._num_places = num_places
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._queue[0][0] <= self.num_free:
            num, turn = self._queue.popleft()
            if not turn.cancelled():
                self.num_free -= num
                turn.set_result(None)


class SlotLease:
    """A dialogue's place in a room, taken for it already. With a `slice_s` it is given back when that time
    has passed, and taken again before the next turn: others who wait come first."""

    def __init__(self, room: DialogueSlots, *, slice_s: float | None):
        self._room = room
        self._slice_s = slice_s
        self._take()

    async def keep(self) -> None:
        """Called before each turn: waits for a place where there is none any more."""
        if not self._is_taken:
            await self._room.enter()
            self._take()

    def leave(self) -> None:
        """The dialogue is over."""
        if self._timer is not None:
            self._timer.cancel()
        self._give_back()

    def _take(self) -> None:
        self._is_taken = True
        self._timer: asyncio.TimerHandle | None = None
        if self._slice_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._slice_s, self._give_back)

    def _give_back(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._room.leave()
