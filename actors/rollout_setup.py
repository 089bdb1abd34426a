"""What a rollout actor is told, and what it tells of its work."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from actors.config import RolloutConfig
from actors.engines.protocol import PolicyEngine, Sampling
from actors.engines.scripted_engine import SCRIPTS, ScriptedEngine
from actors.process_info import ProcessInfo
from actors.renderer import Renderer
from actors.rollout import RolloutContext
from simulators.env import Gym
from simulators.persona import PersonaMix
from simulators.task import Task
from simulators.user import User


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSetup:
    """What a rollout actor needs, in a form that travels: `cluster` puts it into the config as
    `rollout_setup`."""

    config: RolloutConfig
    policy_folder: str
    """Where the tokenizer and its chat template lie."""
    max_tokens: int
    """The engine's context."""
    engine_places: float
    """Sequences that the engines compute at once, shared among the rollout actors; inf where nobody knows."""
    connect_engine: Callable[[], PolicyEngine]
    open_gyms: Callable[[], Mapping[str, Gym]]
    """The gyms' rules and tasks; called once, in the actor."""
    personas: PersonaMix
    connect_user: Callable[[str], User]
    """The simulator of this name; of an empty name: the recipe's mix."""
    score: Callable[[pa.Table, bool], Awaitable[pa.Table]]
    """(a group's table, whether learners may train on it) to the table with its `reward` column. May wait for
    others, for a limited time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkState:
    """How a rollout actor's work for a feed is going."""

    worker_index: int
    holder: str
    """The name under which this life of the actor holds orders."""
    place: ProcessInfo
    is_idle: bool
    """Whether all its work has ended, of every feed."""
    error: str
    """What ended the work; empty while it goes on, and after the feed's own end."""


def make_rollout_context(
    setup: RolloutSetup,
    *,
    policy: str,
    engine: PolicyEngine,
    user: User,
    gyms: Mapping[str, Gym],
    renderer: Renderer,
) -> RolloutContext:
    """What dialogues of `policy`, which is `engine` or a script's name, are played with."""

    def engine_for(task: Task, seed: int) -> PolicyEngine:
        for script in SCRIPTS:
            if policy == script:
                gym = gyms[task.key.gym]
                return ScriptedEngine(script, gym=gym, task=task, renderer=renderer, seed=seed)
        return engine

    config = setup.config
    return RolloutContext(
        engine_for=engine_for,
        user=user,
        gyms=gyms,
        personas=setup.personas,
        renderer=renderer,
        sampling=Sampling(temperature=config.temperature, max_completion_tokens=config.max_completion_tokens),
        max_turns=config.max_turns,
        max_tokens=setup.max_tokens,
        dialogue_timeout_s=config.dialogue_timeout_s,
        on_timeout=config.on_timeout,
    )
