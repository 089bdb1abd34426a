"""Target number of parallel dialogues of a rollout actor: as many as keep its share of the engines busy, and
no more. Pure.

An engine computes a dialogue for a part of its time only; in the rest the dialogue waits for its user and its
tools. By Little's law (1961), an engine capacity of `c` sequences is busy with `c / share` dialogues, `share`
being that part of a dialogue's time. More of them only queue for the engine: each takes longer, and its
tokens are older when they are trained. Shares are measured by gym, so that the target follows a change of the
mix at once."""

from collections import Counter

from actors.trajectory import GroupSummary

HEADROOM = 1.5
"""Factor on the number that the means ask for: users are slow in bursts, and groups begin and end as
wholes."""
NEWEST_WEIGHT = 0.2
"""Weight of the newest group in its gym's running means."""


class ConcurrencyTarget:
    """Tracks how much of their turns the gyms spend with an engine, and the gyms of the groups in flight."""

    def __init__(self, *, engine_capacity: float, max_dialogues: int, group_size: int):
        self.engine_capacity = engine_capacity
        """Sequences that the engines compute at once for this actor; inf if unknown."""
        self._max_dialogues = max_dialogues
        self._group_size = group_size
        self._running: Counter[str] = Counter()
        """Groups in flight, by gym."""
        self._means: dict[str, tuple[float, float]] = {}
        """By gym: seconds of a group's turns with an engine, and elsewhere. Waiting for the engine is in
        neither: the better the target, the less of it there is."""

    def begin(self, gym: str) -> None:
        """A group of this gym begins."""
        self._running[gym] += 1

    def end(self, summary: GroupSummary) -> None:
        """A group that had begun is finished."""
        gym = summary.task_key.gym
        self._running[gym] -= 1
        new = summary.policy_s, summary.user_s + summary.tool_s
        old = self._means.get(gym, new)
        policy_s, elsewhere_s = (
            mean + NEWEST_WEIGHT * (now - mean) for mean, now in zip(old, new, strict=True)
        )
        self._means[gym] = policy_s, elsewhere_s

    def engine_share(self, gym: str) -> float:
        """The part of its time in which an engine computes a dialogue of this gym; 0 while it is unknown,
        which makes the target as high as possible."""
        policy_s, elsewhere_s = self._means.get(gym, (0.0, 0.0))
        return policy_s / max(policy_s + elsewhere_s, 1e-9)

    def num_dialogues(self) -> int:
        """The target, in [group_size, max_dialogues], for the mix of gyms in flight."""
        num_groups = self._running.total()
        if not num_groups:
            return self._max_dialogues
        share = sum(number * self.engine_share(gym) for gym, number in self._running.items()) / num_groups
        wanted = HEADROOM * self.engine_capacity / max(share, 1e-9) + self._group_size - 1
        return max(self._group_size, int(min(wanted, self._max_dialogues)))
