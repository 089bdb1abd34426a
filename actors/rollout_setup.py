"""Settings that a rollout actor is created with (`RolloutSetup`), and the state that it reports."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from actors.config import RolloutConfig
from actors.engines.protocol import PolicyEngine, Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.group_summary import CreditedTable
from actors.process_info import ProcessInfo
from actors.renderer import Renderer
from actors.rollout import RolloutContext
from actors.scripts import Script
from simulators.gym import Gym
from simulators.persona import PersonaMix
from simulators.task import Task
from simulators.user import User


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSetup:
    """What a rollout actor needs, picklable: `cluster` puts it into the RLlib config as `rollout_setup`."""

    config: RolloutConfig
    policy_folder: str
    """Folder of the tokenizer and its chat template."""
    max_tokens: int
    """The engine's context."""
    engine_capacity: float
    """Sequences that the engines compute at once for one rollout actor; inf if unknown."""
    connect_engine: Callable[[], PolicyEngine]
    open_gyms: Callable[[], Mapping[str, Gym]]
    """The gyms' rules and tasks; called once, in the actor."""
    personas: PersonaMix
    connect_user: Callable[[str | None], User]
    """The simulator of this name; None: the recipe's mix."""
    score: Callable[[pa.Table, bool], Awaitable[pa.Table]]
    """(a group's table, whether learners may train on it) to the table with its `reward` column. It may wait
    for a judge, for a limited time."""
    credit: Callable[[pa.Table, bool], CreditedTable]
    """(a scored table, whether learners may train on it) to the table with turn advantages and drop
    reasons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkState:
    """The state of a rollout actor's work for a work source."""

    worker_index: int
    """RLlib's number of the actor; a restarted actor keeps it."""
    worker_id: str
    """The name under which this process holds orders, e.g. `rollout-3-1f0c9a7e`."""
    process: ProcessInfo
    is_idle: bool
    """Whether all its work has ended, for every work source."""
    error: str
    """The error that ended the work; empty while it runs, and after the work source's own end."""


def make_rollout_context(
    setup: RolloutSetup,
    *,
    policy: Script | None,
    engine: PolicyEngine,
    user: User,
    gyms: Mapping[str, Gym],
    renderer: Renderer,
) -> RolloutContext:
    """The context of dialogues of a script, or of the policy behind `engine` if `policy` is None."""

    def engine_for(task: Task, seed: int) -> PolicyEngine:
        if policy is None:
            return engine
        gym = gyms[task.key.gym]
        return ScriptedEngine(policy, gym=gym, task=task, renderer=renderer, seed=seed)

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
