"""Scripted policies as generators of actions: each gym's expert, a hasty expert, a random and a silent
policy. Needs no tokenizer."""

import random
from typing import Literal

from simulators.gym import Expert, Gym
from simulators.message import Action
from simulators.task import Task
from simulators.users.persona_style import persona_aware

Script = Literal["expert", "hasty", "random", "silent"]
"""`hasty` is the expert in a hurry, like people who write demonstrations: it acts before it has asked
enough."""
GUESS_RATES: dict[Script, float] = {"expert": 0.0, "hasty": 0.2}
"""Probability, at each question, to guess instead of asking."""


def script_actions(script: Script, gym: Gym, task: Task, *, opening: str, rng: random.Random) -> Expert:
    """Yields the script's actions and is sent their feedback; `opening` is the user's first message."""
    match script:
        case "random":
            while True:
                yield gym.random_action(task, rng)
        case "silent":
            yield Action(choice="finish", content="")
        case "expert" | "hasty":
            yield from persona_aware(gym.expert(opening, rng, GUESS_RATES[script]))
