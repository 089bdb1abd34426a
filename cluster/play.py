"""`userrl play`: a person in the terminal, as the agent of the rule-based user or as the user of the expert.

Rewards are told at the end only.
"""

import asyncio
import random
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal

from cluster.config import RunConfig
from cluster.recipe import BadInput
from simulators.env import Gym, GymEnv
from simulators.make import find_gym, open_gyms
from simulators.manner import attentive
from simulators.message import CHOICES, Action
from simulators.persona import draw_persona
from simulators.rule_user import RuleUser
from simulators.task import Split, Task, TaskKey
from simulators.user import SimulatorError, User

Side = Literal["agent", "user"]
HOW_TO = f"Type `choice content` with a choice of {', '.join(CHOICES)}; anything else is said to the user."
Agent = Generator[str, str, None]
"""Yields the text of its actions and is sent their feedback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal:
    """Where the person sits."""

    read_line: Callable[[str], str] = input
    """(prompt) to a line; raises EOFError at the end."""
    show: Callable[[str], None] = print
    rewards: list[float] = field(default_factory=list)  # [num_turns]


def play(config: RunConfig, *, gym: str, side: Side, split: Split, index: int) -> None:
    """Plays one dialogue in this terminal. Raises `BadInput` for a gym or a file that is not there."""
    try:
        gyms = open_gyms(config.gyms.preset, config.gyms.constants, config.gyms.data)
        rules = find_gym(gym, gyms)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if index < 0:
        raise BadInput(f"index={index}: counts from 0: give 0 or more")
    key = TaskKey(
        gym=rules.name,
        split=split,
        index=index,
        seed=config.run.seed,
        difficulty=config.gyms.difficulty,
    )
    task = rules.make_task(key)
    terminal = Terminal()
    user: User = RuleUser({rules.name: rules})
    if side == "user":
        from simulators.human_user import HumanUser

        user = HumanUser({rules.name: rules}, rules=user)
    env = GymEnv(
        rules, task=task, user=user, persona=draw_persona(config.simulator.personas, seed=key.task_id)
    )
    agent = person(terminal) if side == "agent" else expert(rules, task, terminal=terminal)
    terminal.show(f"--- {rules.name}, {key.task_id} ---\n{rules.system}\n")
    if side == "agent":
        terminal.show(HOW_TO)
    elif rules.role is None:
        terminal.show(f"The user of {rules.name} only computes: the rules answer in your place.")
    terminal.show(f"\nuser: {task.opening}")
    # Whoever waits for a line is best stopped by the system: nothing is open that would want closing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        ending = asyncio.run(talk(env, agent, terminal=terminal))
        terminal.show(f"\n{ending}\n{receipt(terminal.rewards)}")
    except SimulatorError as error:
        terminal.show(f"\nThe user gave no reply ({error}): no score.")


async def talk(env: GymEnv, agent: Agent, *, terminal: Terminal) -> str:
    """Plays to the end of the dialogue, of the agent's wits or of the input. Returns why it ended, or raises
    `SimulatorError`."""
    text = next(agent, None)
    while text is not None:
        step = await env.step(text)
        terminal.rewards.append(step.reward)
        terminal.show(f"\nenvironment: {step.feedback}")
        if step.terminated or step.truncated:
            return "The dialogue is over." if step.terminated else "The turns are used up."
        try:
            text = agent.send(step.feedback)
        except StopIteration:
            break
    return "The agent has left."


def person(terminal: Terminal) -> Agent:
    """Whoever types. Ends with the input."""
    while True:
        try:
            line = terminal.read_line("you: ").strip()
        except EOFError:
            return
        if line:
            yield str(read_action(line))


def expert(gym: Gym, task: Task, *, terminal: Terminal) -> Agent:
    """The gym's scripted expert, shown as it acts. Ends where a person says what it cannot follow."""
    script = attentive(gym.expert(task.opening, random.Random(task.key.index), 0.0))
    try:
        action = next(script)
        while True:
            terminal.show(f"\nagent: {action}")
            feedback = yield str(action)
            action = script.send(feedback)
    except (StopIteration, ValueError, LookupError, AttributeError, TypeError):
        return  # a person may say anything; a script understands the phrases of its gym


def read_action(line: str) -> Action:
    """`choice content` or `[choice] content`; any other text is an action.

    Example: `read_action("search flight first")` is `Action(choice="search", content="flight first")`.
    """
    first, _, rest = line.strip().partition(" ")
    for choice in CHOICES:
        if first.strip("[]:").lower() == choice:
            return Action(choice=choice, content=rest.strip())
    return Action(choice="action", content=line.strip())


def receipt(rewards: list[float]) -> str:
    """What each turn brought, and the sum."""
    paid = [f"turn {turn}: {reward:+.2f}" for turn, reward in enumerate(rewards, start=1) if reward]
    return "\n".join([*paid, f"score {sum(rewards):.2f} in {len(rewards)} turn{'s' * (len(rewards) != 1)}"])
