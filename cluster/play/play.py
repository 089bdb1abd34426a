"""`userrl play`: a person in the terminal plays the agent against the rule-based user, or the user against a
script, a checkpoint or an endpoint's model.

Rewards are shown at the end only.
"""

import asyncio
import random
import signal
from collections.abc import Generator, Mapping
from typing import Literal, cast

from actors.scripts import Script, script_actions
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.play.policy import (
    DEFAULT,
    PolicyRequest,
    check_request,
    find_policy,
    open_policy,
    with_settings_of,
)
from cluster.play.terminal import Terminal, receipt
from simulators.env import GymEnv
from simulators.env_factory import find_gym
from simulators.gym import Gym
from simulators.message import CHOICES, Action
from simulators.persona import draw_persona
from simulators.task import Split, Task, TaskKey
from simulators.user import SimulatorError, User
from simulators.users.human_user import HumanUser, printable
from simulators.users.rule_user import RuleUser

Side = Literal["agent", "user"]
HOW_TO = f"Type `choice content` with a choice of {', '.join(CHOICES)}; anything else is said to the user."
Agent = Generator[str, str, None]
"""Yields the text of its actions and is sent their feedback."""


def play(
    config: RunConfig,
    *,
    gym: str,
    side: Side,
    split: Split,
    index: int,
    policy: PolicyRequest,
    overrides: Mapping[str, str],
) -> None:
    """Plays one dialogue in this terminal. Raises `BadInput` for a gym, a file or a policy that is not
    there."""
    check_request(policy, side=side)
    try:
        gyms = config.gyms.open()
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
    opponent = None
    if policy.kind != "script":
        place = find_policy(str(policy.policy)) if policy.kind == "folder" else None
        config = with_settings_of(place, config, overrides=overrides) if place else config
        opponent = open_policy(policy, place, config)
    task, terminal = rules.make_task(key), Terminal()
    terminal.show(f"--- {rules.name}, {key.task_id} ---\n{rules.system}\n")
    if side == "agent":
        terminal.show(HOW_TO)
    elif rules.llm_role is None:
        terminal.show(f"The user of {rules.name} only computes: the rules answer in your place.")
    terminal.show(f"\nuser: {task.opening}")
    # Default SIGINT handling while waiting for input: nothing is open that needs closing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if opponent is None:
        script = cast(Script, policy.policy or DEFAULT)
        _play_here(config, rules, task, side=side, script=script, terminal=terminal)
        return
    from cluster.play.rollout import play_policy  # torch and a tokenizer, which a script does not need

    play_policy(config, rules, task, opponent=opponent, terminal=terminal)


def _play_here(
    config: RunConfig, gym: Gym, task: Task, *, side: Side, script: Script, terminal: Terminal
) -> None:
    """A person as the agent, or as the user of a script."""
    user: User = RuleUser({gym.name: gym})
    if side == "user":
        user = HumanUser({gym.name: gym}, rules=user, read_line=terminal.read_line, show=terminal.show)
    persona = draw_persona(config.simulator.personas, seed=task.key.task_id)
    env = GymEnv(gym, task=task, user=user, persona=persona, max_turns=config.rollout.max_turns)
    agent = person(terminal) if side == "agent" else scripted(script, gym, task, terminal=terminal)
    rewards: list[float] = []
    try:
        ending = asyncio.run(talk(env, agent, terminal=terminal, rewards=rewards))
        terminal.show(f"\n{ending}\n{receipt(rewards)}")
    except SimulatorError as error:
        terminal.show(f"\nThe user gave no reply ({error}): no score.")


async def talk(env: GymEnv, agent: Agent, *, terminal: Terminal, rewards: list[float]) -> str:
    """Plays to the end of the dialogue, of the agent's wits or of the input; adds each turn's reward. Returns
    why it ended, or raises `SimulatorError`."""
    text = next(agent, None)
    while text is not None:
        step = await env.step(text)
        rewards.append(step.reward)
        terminal.show(f"\nenvironment: {step.feedback}")
        if step.terminated or step.truncated:
            return "The dialogue is over." if step.terminated else "The turns are used up."
        try:
            text = agent.send(step.feedback)
        except StopIteration:
            break
    return "The agent has left."


def person(terminal: Terminal) -> Agent:
    """Actions typed in the terminal, until the input ends."""
    while True:
        try:
            line = terminal.read_line("you: ").strip()
        except EOFError:
            return
        if line:
            yield str(read_action(line))


def scripted(script: Script, gym: Gym, task: Task, *, terminal: Terminal) -> Agent:
    """A scripted policy, shown as it acts. An expert leaves where a person says what it cannot follow."""
    rng = random.Random(task.key.index)
    actions = script_actions(script, gym, task, opening=task.opening, rng=rng)
    try:
        action = next(actions)
        while True:
            terminal.show(f"\nagent: {printable(str(action))}")
            feedback = yield str(action)
            action = actions.send(feedback)
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
