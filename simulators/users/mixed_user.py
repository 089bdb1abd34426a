"""Weighted mix of simulated users: one of them plays each dialogue from beginning to end."""

import random
from collections.abc import Mapping

from simulators.user import User, UserCall, UserReply


class MixedUser:
    """Picks a user by the dialogue's seed: the same in every process and every repetition."""

    def __init__(self, users: Mapping[str, User], *, weights: Mapping[str, float]):
        """Both by simulator name. Raises ValueError if no weight is above 0 or a user has no weight."""
        if users.keys() != weights.keys():
            odd = sorted(users.keys() ^ weights.keys())
            raise ValueError(
                f"users and weights must name the same simulators: {', '.join(odd)} stand in one only"
            )
        if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights={dict(weights)}: none may be below 0, and one must be above")
        # Sorted: the order of users in a recipe must not change which user plays which dialogue.
        self._users = {name: users[name] for name in sorted(users) if weights[name] > 0}
        self._weights = [weights[name] for name in self._users]

    def pick(self, call: UserCall) -> str:
        """The user of this call's dialogue: all calls of a dialogue carry the same seed."""
        return random.Random(f"user-mix-{call.seed}").choices(list(self._users), self._weights)[0]

    async def reply(self, call: UserCall) -> UserReply:
        """The picked user's reply. Raises its `SimulatorError`."""
        return await self._users[self.pick(call)].reply(call)
