"""Rollout of a policy against a person in the terminal, printed turn by turn."""

import asyncio

from actors.engines.protocol import CompletionRequest, PolicyEngine, Sampling
from actors.renderer import Renderer
from actors.rollout import ResumePoint, RolloutContext, rollout
from actors.tool_call_parser import parse_tool_call
from actors.trajectory import Completion, StopReason, Trajectory, Turn
from cluster.config.run_config import RunConfig
from cluster.play.policy import Opponent
from cluster.play.terminal import Terminal, receipt
from simulators.gym import Gym
from simulators.task import Task
from simulators.users.human_user import HumanUser, printable
from simulators.users.rule_user import RuleUser

ENDINGS = {
    StopReason.TERMINATED: "The dialogue is over.",
    StopReason.MAX_TURNS: "The turns are used up.",
    StopReason.NO_TOOL_CALL: "The agent made no tool call, which ends the dialogue.",
    StopReason.MAX_TOKENS: "The next turn would not fit the policy's context.",
}


class ShownEngine:
    """Engine wrapper that prints each completion before the environment replies. Implements
    `PolicyEngine`."""

    def __init__(self, engine: PolicyEngine, *, renderer: Renderer, terminal: Terminal):
        self._engine = engine
        self._renderer = renderer
        self._terminal = terminal

    async def complete(self, request: CompletionRequest) -> Completion:
        completion = await self._engine.complete(request)
        text = self._renderer.decode(completion.token_ids)
        self._terminal.show(f"\nagent: {printable(str(parse_tool_call(text) or text))}")
        return completion


def play_policy(config: RunConfig, gym: Gym, task: Task, *, opponent: Opponent, terminal: Terminal) -> None:
    """One dialogue of a policy with a person as its user, by the settings of training."""
    engine = ShownEngine(opponent.engine, renderer=opponent.renderer, terminal=terminal)
    context = RolloutContext(
        engine_for=lambda task, seed: engine,
        user=HumanUser(
            {gym.name: gym},
            rules=RuleUser({gym.name: gym}),
            read_line=terminal.read_line,
            show=terminal.show,
        ),
        renderer=opponent.renderer,
        sampling=Sampling(
            temperature=config.rollout.temperature,
            max_completion_tokens=config.rollout.max_completion_tokens,
        ),
        gyms={gym.name: gym},
        personas=config.simulator.personas,
        max_turns=config.rollout.max_turns,
        max_tokens=opponent.max_tokens,
    )

    def show_feedback(index: int, turn: Turn) -> None:
        if turn.action is not None:
            terminal.show(f"\nenvironment: {turn.feedback}")

    played = asyncio.run(
        rollout(task.key, context, seed=task.key.seed, resume=ResumePoint(publish=show_feedback))
    )
    terminal.show(f"\n{ending_of(played)}")


def ending_of(played: Trajectory) -> str:
    """Why the dialogue ended, and its score unless it failed: a failure is no score."""
    if played.stop_reason.failed:
        why = printable(played.error) or played.stop_reason.value
        return f"The dialogue broke off ({why}): no score."
    return f"{ENDINGS[played.stop_reason]}\n{receipt([turn.reward for turn in played.turns])}"
