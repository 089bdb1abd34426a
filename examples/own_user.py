"""A simulated user of your own: someone who answers in a hurry. A recipe names the class:

[[simulator.users]]
type = "custom"
name = "hurried"
factory = "examples.own_user:HurriedUser"
"""

from collections.abc import Mapping
from dataclasses import replace

from simulators.gym import Gym
from simulators.user import User, UserCall, UserReply


class HurriedUser:
    """The rule-based user in lower case, without the full stop: other words, the same facts."""

    def __init__(self, *, name: str, gyms: Mapping[str, Gym], rules: User):
        """`name` is the user's in the recipe, and in rows; `rules` answers by each gym's own rules."""
        self._name, self._rules = name, rules

    async def reply(self, call: UserCall) -> UserReply:
        """Raises `SimulatorError` if `rules` does."""
        reply = await self._rules.reply(call)
        return replace(reply, text=reply.text.lower().removesuffix("."), simulator=self._name)
