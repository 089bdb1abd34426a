"""Engine that plays a script in place of a model."""

import random

from actors.engines.protocol import CompletionRequest
from actors.renderer import Renderer
from actors.scripts import Script, script_actions
from actors.trajectory import Completion
from simulators.gym import Expert, Gym
from simulators.message import Action
from simulators.task import Task


class ScriptedEngine:
    """Plays one dialogue of one task by a script, in tokens. Implements `PolicyEngine`; logprobs are zero."""

    def __init__(self, script: Script, *, gym: Gym, task: Task, renderer: Renderer, seed: int):
        self._script: Script = script
        self._gym = gym
        self._task = task
        self._renderer = renderer
        self._rng = random.Random(seed)
        self._actions: Expert | None = None

    async def complete(self, request: CompletionRequest) -> Completion:
        return Completion.scripted(self._renderer.completion_of(self._next(request.messages[-1].content)))

    def _next(self, feedback: str) -> Action:
        if self._actions is None:
            self._actions = script_actions(
                self._script, self._gym, self._task, opening=feedback, rng=self._rng
            )
            return next(self._actions)
        try:
            return self._actions.send(feedback)
        except StopIteration:  # it has given its answer, and the answer did not end the dialogue
            return Action(choice="finish", content="")
