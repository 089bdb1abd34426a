"""How many dialogues a rollout actor needs to keep its share of the engines busy, and no more. Pure.

A dialogue is with an engine for a part of its time only; the rest it waits for its user and its tools. By
Little's law (1961), `places` that are to be busy need `places / share` dialogues, `share` being the part of
a dialogue's time in which an engine computes it. More of them only wait in the engine's list: every one then
takes longer, and its tokens are older when they are trained. Shares are measured by gym, so that a mix that
turns to slower users is followed at once.
"""

from collections import Counter

from actors.trajectory import GroupSummary

HEADROOM = 1.5
"""Dialogues beyond what the means ask for: users are slow in fits, and groups begin and end as wholes."""
RECENT = 0.2
"""Weight of the newest group in its gym's means."""


class ConcurrencyTarget:
    """Follows how long the gyms' turns are with an engine and elsewhere, and which gyms are in flight."""

    def __init__(self, *, places: float, most: int, group_size: int):
        self.places = places
        """Sequences that the engines compute at once for this actor; inf where nobody knows."""
        self._most = most
        self._group_size = group_size
        self._running: Counter[str] = Counter()
        """Groups in flight, by gym."""
        self._means: dict[str, tuple[float, float]] = {}
        """By gym: seconds of a group's turns with an engine, and elsewhere. Waiting for the engine is
        neither: the better this works, the less of it there is."""

    def begin(self, gym: str) -> None:
        """A group of this gym begins."""
        self._running[gym] += 1

    def end(self, summary: GroupSummary) -> None:
        """A group that had begun is finished."""
        gym = summary.task_key.gym
        self._running[gym] -= 1
        new = summary.policy_s, summary.user_s + summary.tool_s
        old = self._means.get(gym, new)
        policy_s, elsewhere_s = (mean + RECENT * (now - mean) for mean, now in zip(old, new, strict=True))
        self._means[gym] = policy_s, elsewhere_s

    def share(self, gym: str) -> float:
        """The part of its time in which an engine computes a dialogue of this gym; 0 as long as nothing is
        known, so that nothing is held back for it."""
        policy_s, elsewhere_s = self._means.get(gym, (0.0, 0.0))
        return policy_s / max(policy_s + elsewhere_s, 1e-9)

    def num_dialogues(self) -> int:
        """Dialogues to have in flight, in [group_size, most], for a mix of gyms as it is in flight now."""
        num_groups = self._running.total()
        if not num_groups:
            return self._most
        share = sum(number * self.share(gym) for gym, number in self._running.items()) / num_groups
        wanted = HEADROOM * self.places / max(share, 1e-9) + self._group_size - 1
        return max(self._group_size, int(min(wanted, self._most)))
