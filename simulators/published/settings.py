"""Constants of the released training and evaluation settings (UserRL, arXiv 2509.19736, as shipped).

The released step penalty is 0 in both and is left out; so are its reward scale of 1 and its clipping where
a reward cannot leave [0, 1].
"""

from dataclasses import dataclass
from typing import Literal

PublishedSetting = Literal["training", "evaluation"]
"""The released setting of the published rules; the default rules have the same for both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedConstants:
    """One released setting. The defaults are shared by both settings."""

    max_turns: int
    """Turns that are executed. The released training generates 16 times and never executes the 16th."""
    shows_reward: bool
    """Whether the agent reads each turn's reward under its feedback."""
    travel_search: float
    """Reward of the first aligned search of an aspect."""
    travel_preference: float
    """Reward of a question that hits a preference."""
    travel_best: float = 1.0
    travel_correct: float = 0.8
    travel_search_failure_interval: int = 5
    """Every n-th search fails on purpose."""
    travel_elicitation_interval: int = 3
    """Turns without a preference after which the user was meant to volunteer one."""
    turtle_threshold: float = 1.0
    """Overall score that ends a story; for many stories no perfect answer reaches it in floating point."""
    intention_detail_penalty: float = 0.2
    """Penalty for each detail beyond the first that one question covers."""
    max_searches: int = 5
    """Searches of SearchGym that are executed."""


CONSTANTS: dict[PublishedSetting, PublishedConstants] = {
    "training": PublishedConstants(max_turns=15, shows_reward=True, travel_search=0.0, travel_preference=0.8),
    "evaluation": PublishedConstants(
        max_turns=16, shows_reward=False, travel_search=0.2, travel_preference=0.6
    ),
}
