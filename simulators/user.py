"""The simulated user's protocol: a pure question with its whole history in, a reply out.

A user keeps no state between calls, so any replica can answer any call and a retry never steps anything
twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class SimulatorError(Exception):
    """The simulated user gave no usable reply. It ends a trajectory as a failure and never becomes a
    reward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserCall:
    """One question to a simulated user."""

    gym: str
    scenario: Mapping[str, Any]
    """What this user knows and wants, as JSON. The policy never sees it."""
    question: str
    """The policy's text, passed as data."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, reply) pairs of this dialogue, oldest first."""
    seed: int = 0
    """Fixes every random choice of the reply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserReply:
    """What the user says, and what it meant in the gym's own terms."""

    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The reply's meaning for the environment, e.g. `{"preference": "cabin"}`. The policy never sees it."""
    simulator: str = "rules"
    """Who answered."""
    latency_s: float = 0.0
    """Seconds from question to reply, as the asker measured them."""
    num_retries: int = 0


class User(Protocol):
    """Anything that answers a `UserCall`: rules in process, a Serve replica, a model, a person."""

    async def reply(self, call: UserCall) -> UserReply:
        """Answers, or raises `SimulatorError`."""
        ...
