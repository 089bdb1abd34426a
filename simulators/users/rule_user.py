"""Rule-based simulated user, in process: each gym's own rules behind the `User` interface."""

import random
from collections.abc import Mapping
from difflib import get_close_matches

from simulators.gym import Gym
from simulators.user import RULES, Failure, SimulatorError, UserCall, UserReply
from simulators.users.persona_style import apply_persona


class RuleUser:
    """Replies to any gym's calls by that gym's `rule_based_reply`. Stateless."""

    def __init__(self, gyms: Mapping[str, Gym] | None = None):
        if gyms is None:
            from simulators.gyms import GYMS  # imported here: gyms import users

            gyms = GYMS
        self._gyms = gyms

    async def reply(self, call: UserCall) -> UserReply:
        """The gym's reply. Raises `SimulatorError` with the rule's own error in its text."""
        return self.reply_sync(call)

    def reply_sync(self, call: UserCall) -> UserReply:
        """The same without an event loop. Equal calls get equal replies."""
        if call.gym not in self._gyms:
            raise SimulatorError(unknown_gym(call.gym, known=list(self._gyms)))
        # Every turn has its own random stream; a retried call draws the same numbers.
        rng = random.Random(f"user-{call.gym}-{call.seed}-{len(call.history)}")
        try:
            return apply_persona(self._gyms[call.gym].rule_based_reply(call, rng), call, rng)
        except Exception as error:
            text = f"{call.gym}: {type(error).__name__}: {error}"
            raise SimulatorError(text, Failure.ERROR, RULES) from error


def unknown_gym(name: str, *, known: list[str]) -> str:
    """One line: the name, the nearest known one, and all of them."""
    nearest = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"gym={name!r} is not known: did you mean {nearest[0]!r}? The gyms are {', '.join(known)}"
