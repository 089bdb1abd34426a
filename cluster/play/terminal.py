"""Terminal input and output of `userrl play`, and the summary printed at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal:
    """Where the person sits."""

    read_line: Callable[[str], str] = input
    """(prompt) to a line; raises EOFError at the end."""
    show: Callable[[str], None] = print


def receipt(rewards: Sequence[float]) -> str:
    """What each turn brought, and the sum."""
    paid = [f"turn {turn}: {reward:+.2f}" for turn, reward in enumerate(rewards, start=1) if reward]
    return "\n".join([*paid, f"score {sum(rewards):.2f} in {len(rewards)} turn{'s' * (len(rewards) != 1)}"])
