"""Rule-based simulated user, in process: each gym's own rules behind the `User` interface."""

import random
from collections.abc import Mapping
from difflib import get_close_matches

from simulators.gym import Gym
from simulators.user import RULES, Failure, SimulatorError, UserCall, UserReply
from simulators.users.persona_style import speak


class RuleUser:
    """Answers any gym's calls by that gym's `answer`. Keeps nothing between calls."""

    def __init__(self, gyms: Mapping[str, Gym] | None = None):
        if gyms is None:
            from simulators.gyms import GYMS  # gyms know users; only the default knows every gym

            gyms = GYMS
        self._gyms = gyms

    async def reply(self, call: UserCall) -> UserReply:
        """Answers, or raises `SimulatorError` with the rule's own error in its text."""
        return self.answer(call)

    def answer(self, call: UserCall) -> UserReply:
        """The same, for callers without an event loop. The same call always gets the same reply."""
        if call.gym not in self._gyms:
            raise SimulatorError(unknown_gym(call.gym, known=list(self._gyms)))
        # Every turn has its own random stream, and a retried call draws the same numbers again.
        rng = random.Random(f"user-{call.gym}-{call.seed}-{len(call.history)}")
        try:
            return speak(self._gyms[call.gym].rule_based_reply(call, rng), call, rng)
        except Exception as error:
            text = f"{call.gym}: {type(error).__name__}: {error}"
            raise SimulatorError(text, Failure.ERROR, RULES) from error


def unknown_gym(name: str, *, known: list[str]) -> str:
    """One line: the name, the nearest known one, and all of them."""
    nearest = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"gym={name!r} is not known: did you mean {nearest[0]!r}? The gyms are {', '.join(known)}"
