"""Published rules: the released UserRL rules of all gyms, turn by turn, for comparable numbers; never the
default.

Each gym's docstring lists what was kept, hacks included, and the verdict facts of its user. The released code
turns a failing model into reward 0 and a friendly text; here a failing user raises `SimulatorError`, and the
dialogue has no score.

Example: with `gym = PUBLISHED["persuade"]`, `task = gym.load_tasks(path)[0]` and a user that replies
`UserReply(text="Hm.", facts={"stance": "Neutral"})`, the first step of `GymEnv(gym, task=task, user=user)`
pays 0.5.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym
from simulators.published import function, intention, persuade, search, tau, telepathy, travel, turtle
from simulators.published.settings import CONSTANTS, PublishedSetting
from simulators.published.shared_rules import both_flags, intention_flags, travel_flags

FLAGS = {
    **dict.fromkeys(("function", "search", "tau", "telepathy", "turtle"), both_flags),
    "intention": intention_flags,
    "travel": travel_flags,
}
"""End flags of the last turn in the evaluation. In training the rollout stops a turn before the gym's own
limit, so that no gym ever flags it."""
REWARD_LINE = "\nReward: "


def published_gyms(constants: PublishedSetting) -> dict[str, Gym]:
    """Every gym under the released rules, with the constants of the released training or evaluation.

    Training executes 15 turns and shows each turn's reward under its feedback; evaluation executes 16 without
    it and flags the last one as the released gyms do. Raises ValueError for an unknown setting.
    """
    if constants not in CONSTANTS:
        raise ValueError(f"constants={constants!r}: the released settings are {', '.join(CONSTANTS)}")
    setting = CONSTANTS[constants]
    gyms = {
        "function": function.GYM,
        "intention": intention.make_gym(setting),
        "persuade": persuade.GYM,
        "search": search.make_gym(setting),
        "tau": tau.GYM,
        "telepathy": telepathy.GYM,
        "travel": travel.make_gym(setting),
        "turtle": turtle.make_gym(setting),
    }
    gyms = {name: replace(gym, max_turns=setting.max_turns) for name, gym in gyms.items()}
    if not setting.shows_reward:
        return {
            name: replace(gym, rules=replace(gym.rules, end_flags=FLAGS.get(name, gym.rules.end_flags)))
            for name, gym in gyms.items()
        }
    return {name: _showing_reward(gym) for name, gym in gyms.items()}


def _showing_reward(gym: Gym) -> Gym:
    """Wraps a gym so that its feedback ends with the turn's reward: under published rules, the outcome's
    score."""
    return replace(
        gym,
        apply_action=partial(_with_reward_line, gym.apply_action),
        expert=partial(_without_reward_line, gym.expert),
        rules=replace(
            gym.rules,
            on_finish=partial(_with_reward_line, gym.rules.on_finish),
            on_unparsed=partial(_with_reward_line, gym.rules.on_unparsed),
        ),
    )


def _with_reward_line(rules: Callable[..., ActionOutcome], *arguments: Any) -> ActionOutcome:
    outcome = rules(*arguments)
    return replace(outcome, feedback=f"{outcome.feedback}{REWARD_LINE}{float(outcome.score)}")


def _without_reward_line(
    expert: Callable[..., Expert], opening: str, rng: random.Random, guess_rate: float
) -> Expert:
    """Hides the reward line from the expert, which was not written for it."""
    inner = expert(opening, rng, guess_rate)
    feedback: str | None = None
    while True:
        try:
            action = next(inner) if feedback is None else inner.send(feedback)
        except StopIteration:
            return
        feedback = (yield action).partition(REWARD_LINE)[0]


PUBLISHED: dict[str, Gym] = published_gyms("evaluation")
"""The rules of the released environments themselves, without the additions of training."""
