"""Policies that are scripts: the expert of each gym, a random one, a silent one. They stand where an engine
stands."""

import random
from typing import Literal

from actors.engines.protocol import CompletionRequest
from actors.renderer import Renderer
from actors.trajectory import Completion
from simulators.env import Expert, Gym
from simulators.message import Action
from simulators.task import Task
from simulators.users.persona_style import attentive

Script = Literal["expert", "hasty", "random", "silent"]
SCRIPTS: tuple[Script, ...] = ("expert", "hasty", "random", "silent")
"""`hasty` is the expert in a hurry, as people are who write demonstrations: it acts before it has asked
enough."""
HASTE = {"expert": 0.0, "hasty": 0.2}
"""Chance, at each question, to act without asking it."""


class ScriptedEngine:
    """Plays one dialogue of one task by a script, in tokens. Implements `PolicyEngine`; logprobs are zero."""

    def __init__(self, script: Script, *, gym: Gym, task: Task, renderer: Renderer, seed: int):
        self._script: Script = script
        self._gym = gym
        self._task = task
        self._renderer = renderer
        self._rng = random.Random(seed)
        self._expert: Expert | None = None

    async def complete(self, request: CompletionRequest) -> Completion:
        return Completion.scripted(self._renderer.completion_of(self._act(request)))

    def _act(self, request: CompletionRequest) -> Action:
        last = request.messages[-1].content
        match self._script:
            case "random":
                return self._gym.random_action(self._task, self._rng)
            case "silent":
                return Action(choice="finish", content="")
            case "expert" | "hasty":
                if self._expert is None:
                    self._expert = attentive(self._gym.expert(last, self._rng, HASTE[self._script]))
                    return next(self._expert)
                try:
                    return self._expert.send(last)
                except StopIteration:  # it has given its answer, and the answer did not end the dialogue
                    return Action(choice="finish", content="")
