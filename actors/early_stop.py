"""Dialogues ended from outside: by their time limit, or because their group has enough without them."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

from actors.trajectory import StopReason, Trajectory


class StopControl:
    """What may end one dialogue from outside. What it waits for then, an engine or a user, is cancelled."""

    def __init__(self, *, limit_s: float | None):
        self._limit_s = limit_s
        self._timeout: asyncio.Timeout | None = None
        self._is_surplus = False

    async def bound(self, talk: Awaitable[StopReason]) -> StopReason:
        """`talk`'s own stop reason, or the one for which it was cut."""
        try:
            async with asyncio.timeout(0 if self._is_surplus else self._limit_s) as self._timeout:
                return await talk
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise  # the dialogue's own
            return StopReason.SURPLUS if self._is_surplus else StopReason.TIME_LIMIT
        finally:
            self._timeout = None

    def surplus(self) -> None:
        """The group has enough: ends the dialogue now, if it goes on."""
        self._is_surplus = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)


class GroupQuota:
    """Counts a group's trajectories that ended by themselves, and cuts the others once there are enough."""

    def __init__(self, num_wanted: int, *, cuts: list[StopControl]):
        self._num_wanted = num_wanted
        self._cuts = cuts

    def note(self, trajectory: Trajectory) -> Trajectory:
        """Takes a trajectory that has ended; one too many, though it ended in the same moment, is surplus."""
        if trajectory.stop_reason.failed:
            return trajectory
        if not self._num_wanted:
            return replace(trajectory, stop_reason=StopReason.SURPLUS)
        self._num_wanted -= 1
        if not self._num_wanted:
            for cut in self._cuts:
                cut.surplus()
        return trajectory
