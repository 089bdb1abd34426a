"""User wrapper that delays replies, to rehearse a model's latency without the model."""

import asyncio
import math
import random
import time
from dataclasses import replace

from simulators.user import User, UserCall, UserReply

SPREAD = 0.5
"""Standard deviation of a delay's logarithm. One in a hundred takes 2.8 times the mean, as replies of very
different lengths do: what waits for the slowest of many feels the tail."""


class DelayedUser:
    """Waits, then passes the call on. It waits with the caller, as for an endpoint over a network: a wait is
    a timer on the event loop and takes up no place among the requests of a replica."""

    def __init__(self, user: User, *, delay_s: float):
        self._user = user
        self._delay_s = delay_s

    def delay_s(self, call: UserCall) -> float:
        """Seconds that this call waits: log-normal with mean `delay_s`, always the same for the same call."""
        text = f"user-delay-{call.gym}-{call.seed}-{len(call.history)}-{call.question}"
        return self._delay_s * math.exp(random.Random(text).gauss(-(SPREAD**2) / 2, SPREAD))

    async def reply(self, call: UserCall) -> UserReply:
        """The other user's reply, later; its `SimulatorError` where it fails."""
        began = time.monotonic()
        await asyncio.sleep(self.delay_s(call))
        reply = await self._user.reply(call)
        return replace(reply, latency_s=time.monotonic() - began)
