"""Slots for the dialogues of one event loop, granted in the order of requests, and the lease of a slot."""

import asyncio

from simulators.fair_semaphore import FairSemaphore


class DialogueSlots(FairSemaphore):
    """The slots of a rollout actor. A group takes all of its slots at once."""

    async def acquire(self, num: int = 1) -> None:
        """Waits for `num` slots and takes them. Raises ValueError if the capacity is smaller."""
        if num > self.capacity:
            raise ValueError(f"{num} dialogues do not fit dialogues_per_actor={self.capacity}")
        await super().acquire(num)


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
