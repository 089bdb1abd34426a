"""Early stop of a dialogue: at its time limit, or as surplus once its group has enough trajectories."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

from actors.trajectory import StopReason, Trajectory


class StopControl:
    """Stops one dialogue from outside by cancelling the engine's or user's call that it waits for."""

    def __init__(self, *, limit_s: float | None):
        self._limit_s = limit_s
        self._timeout: asyncio.Timeout | None = None
        self._is_surplus = False

    async def run(self, dialogue: Awaitable[StopReason]) -> StopReason:
        """The dialogue's own stop reason, or the reason for which it was stopped."""
        try:
            async with asyncio.timeout(0 if self._is_surplus else self._limit_s) as self._timeout:
                return await dialogue
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise  # the dialogue's own
            return StopReason.SURPLUS if self._is_surplus else StopReason.TIME_LIMIT
        finally:
            self._timeout = None

    def stop_as_surplus(self) -> None:
        """Stops the dialogue now, if it is still running."""
        self._is_surplus = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)


class GroupQuota:
    """Counts a group's trajectories that ended by themselves, and stops the others once there are enough."""

    def __init__(self, num_wanted: int, *, stops: list[StopControl]):
        self._num_missing = num_wanted
        self._stops = stops

    def count(self, trajectory: Trajectory) -> Trajectory:
        """Takes a trajectory that has ended. One too many becomes surplus, though it ended by itself in the
        same moment."""
        if trajectory.stop_reason.failed:
            return trajectory
        if not self._num_missing:
            return replace(trajectory, stop_reason=StopReason.SURPLUS)
        self._num_missing -= 1
        if not self._num_missing:
            for stop in self._stops:
                stop.stop_as_surplus()
        return trajectory
