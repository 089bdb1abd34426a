"""User wrapper that delays replies, to rehearse a model's latency without the model."""

import asyncio
import math
import random
import time
from dataclasses import replace

from simulators.user import User, UserCall, UserReply

SPREAD = 0.5
"""Standard deviation of a delay's logarithm. One in a hundred takes 2.8 times the mean, like replies of very
different lengths, so that waiting for the slowest of many shows the tail."""


class DelayedUser:
    """Waits, then forwards the call. It waits in the caller's process, as for a remote endpoint: a wait is a
    timer on the event loop and occupies no request slot of a replica."""

    def __init__(self, user: User, *, delay_s: float):
        self._user = user
        self._delay_s = delay_s

    def delay_s(self, call: UserCall) -> float:
        """Delay of this call in seconds: log-normal with mean `delay_s`, the same for equal calls."""
        text = f"user-delay-{call.gym}-{call.seed}-{len(call.history)}-{call.question}"
        return self._delay_s * math.exp(random.Random(text).gauss(-(SPREAD**2) / 2, SPREAD))

    async def reply(self, call: UserCall) -> UserReply:
        """The inner user's reply after the delay. Raises its `SimulatorError`."""
        began = time.monotonic()
        await asyncio.sleep(self.delay_s(call))
        reply = await self._user.reply(call)
        return replace(reply, latency_s=time.monotonic() - began)
