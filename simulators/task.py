"""Tasks, their keys, and the seeded source that draws keys: the same `TaskKey` gives the same task
everywhere."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_SHARES: tuple[int, ...] = (80, 10, 10)
"""Percentage of all meanings in each split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskKey:
    """Identifies one task: the same key gives the same task on every machine.

    Example: `TaskKey(gym="travel", split="test", index=0, seed=0, difficulty=1)` has the `task_id`
    `travel-test-d1-s0-0`."""

    gym: str
    split: Split
    index: int
    seed: int
    difficulty: int
    """0 is the easiest; each gym defines its levels."""

    @property
    def task_id(self) -> str:
        return f"{self.gym}-{self.split}-d{self.difficulty}-s{self.seed}-{self.index}"

    def rng(self) -> random.Random:
        """The random generator from which this task alone is drawn."""
        return random.Random(f"{self.task_id}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One problem: the user's opening and the hidden scenario.

    Example: opening "I am going to Dakar. Please book a car for me.", scenario `{"wishes": {"car": {"body":
    "pickup"}}, "catalogue": {"car": [{"id": "C76", ...}, ...]}}`."""

    key: TaskKey
    opening: str
    """The user's first message; the policy sees it."""
    scenario: Mapping[str, Any]
    """The hidden part, as JSON: what the user knows and what counts as success."""


def split_of(meaning: str) -> Split:
    """The split that owns a meaning (a function, an entity, a travel part): disjoint by construction.

    Example: every task with the hidden function `2*a+b` is in the split `split_of("2*a+b")`, for any seed.
    """
    bucket = int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=4).digest()) % 100
    for split, share in zip(SPLITS, SPLIT_SHARES, strict=True):
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("SPLIT_SHARES must sum to 100")


class TaskSource:
    """Draws task keys from a weighted mix of gyms; the seed and `num_drawn` alone determine the order."""

    def __init__(
        self, weights: Mapping[str, float], *, split: Split, seed: int, difficulty: int, num_drawn: int = 0
    ):
        self._gyms = list(weights)
        self._weights = list(weights.values())
        self._split: Split = split
        self._seed = seed
        self._difficulty = difficulty
        self.num_drawn = num_drawn
        """The whole resumable state: tasks drawn so far."""

    def draw(self) -> TaskKey:
        """The next task's key."""
        index = self.num_drawn
        self.num_drawn += 1
        gym = random.Random(f"mix-{self._seed}-{index}").choices(self._gyms, self._weights)[0]
        return TaskKey(gym=gym, split=self._split, index=index, seed=self._seed, difficulty=self._difficulty)
