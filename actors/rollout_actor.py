"""The rollout actor: an RLlib EnvRunner that plays many dialogues at once on one event loop.

It pulls orders from a feed and hands finished groups back until the feed ends, so it is never driven call by
call and never blocks RLlib's own calls. It refuses to know what the feed does with the results, and holds no
weights.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from actors.config import RolloutConfig
from actors.engine import PolicyEngine, Sampling
from actors.renderer import Renderer
from actors.rollout import Setting, rollout_group
from actors.scripted import SCRIPTS, ScriptedEngine
from actors.summary import summarize
from actors.table import to_table
from actors.trajectory import GroupOrder, GroupSummary
from simulators.env import Gym
from simulators.gauges import NO_COUNTS
from simulators.persona import PersonaMix
from simulators.task import Task
from simulators.user import User

FEED_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
Orders = Sequence[GroupOrder] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSetup:
    """What a rollout actor needs, in a form that travels: `cluster` puts it into the config as
    `rollout_setup`."""

    config: RolloutConfig
    policy_folder: str
    """Where the tokenizer and its chat template lie."""
    max_tokens: int
    """The engine's context."""
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
    error: str
    """What ended the work; empty while it goes on, and after the feed's own end."""


class RolloutActor(EnvRunner, Checkpointable):
    """Rolls out groups. One Ray actor, one event loop, `dialogues_per_actor` dialogues."""

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self._setup: RolloutSetup = config.rollout_setup
        self.holder = f"rollout-{self.worker_index}-{uuid.uuid4().hex[:8]}"
        """This life's name: a restarted actor has another, so that what the dead one held is known to be
        lost."""
        self._renderer = Renderer.from_folder(self._setup.policy_folder)
        self._work: dict[ActorHandle, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._gyms = self._setup.open_gyms()
        self._engine: PolicyEngine | None = None
        self._users: dict[str, User] = {}
        """By simulator."""

    def work(
        self, feed: ActorHandle, *, policy: str = "engine", simulator: str = "", group_size: int
    ) -> WorkState:
        """Begins to work for `feed` in the background, if it does not yet. `policy` is `engine` or a script's
        name; `simulator` names who plays the user, empty: the recipe's mix."""
        if feed not in self._work:
            setting = self._setting(policy, simulator=simulator)
            pull = self._pull(feed, setting=setting, group_size=group_size)
            self._work[feed] = asyncio.run_coroutine_threadsafe(pull, self._loop)
        work = self._work[feed]
        # RLlib ends an actor on any exception that leaves it, so an error travels as text.
        error = repr(work.exception()) if work.done() and work.exception() is not None else ""
        return WorkState(worker_index=self.worker_index, holder=self.holder, error=error)

    def sample(
        self, *, orders: Sequence[GroupOrder] = (), policy: str = "engine", **kwargs: Any
    ) -> ray.ObjectRef | None:
        """Rolls out these orders, waits for them, and gives their tables as one: RLlib's own way to ask.

        For work that needs no feed, such as demonstrations. None without orders.
        """
        if not orders:
            return None
        setting = self._setting(policy)

        async def roll_all() -> list[tuple[GroupSummary, pa.Table]]:
            rolled = (self._roll(order, setting, is_trained=False) for order in orders)
            return list(await asyncio.gather(*rolled))

        groups = asyncio.run_coroutine_threadsafe(roll_all(), self._loop).result()
        return ray.put(pa.concat_tables(table for _, table in groups))

    async def _pull(self, feed: ActorHandle, *, setting: Setting, group_size: int) -> None:
        """Consumes orders of `feed`, waits for room and for orders, produces finished groups; ends with the
        feed."""
        room = asyncio.Semaphore(max(1, self._setup.config.dialogues_per_actor // group_size))
        async with asyncio.TaskGroup() as groups:
            while True:
                taken = await _acquire_some(room)
                async with asyncio.timeout(FEED_TIMEOUT_S):
                    asked = cast(Awaitable[Orders], feed.next_orders.remote(self.holder, taken))
                    orders = await asked
                for _ in range(taken - len(orders or [])):
                    room.release()
                if orders is None:
                    return
                for order in orders:
                    groups.create_task(self._roll_for(feed, order, setting, room))

    async def _roll_for(
        self, feed: ActorHandle, order: GroupOrder, setting: Setting, room: asyncio.Semaphore
    ) -> None:
        is_trained = order.task_key.split == "train"
        summary, table = await self._roll(order, setting, is_trained=is_trained, has_rolled=room.release)
        async with asyncio.timeout(FEED_TIMEOUT_S):
            await cast(Awaitable[object], feed.put.remote(order, summary, table))

    async def _roll(
        self,
        order: GroupOrder,
        setting: Setting,
        *,
        is_trained: bool,
        has_rolled: Callable[[], object] = lambda: None,
    ) -> tuple[GroupSummary, pa.Table]:
        """Plays a group and has it scored; `has_rolled` is called between: the next dialogues need not wait
        for a judge."""
        started = time.perf_counter()
        trajectories = await rollout_group(order, setting)
        has_rolled()
        table = await self._setup.score(to_table(order, trajectories), is_trained)
        gauges = sum((trajectory.gauges for trajectory in trajectories), NO_COUNTS)
        return summarize(order, table, gauges=gauges, duration_s=time.perf_counter() - started), table

    def _setting(self, policy: str, *, simulator: str = "") -> Setting:
        if self._engine is None:
            self._engine = self._setup.connect_engine()
        if simulator not in self._users:
            self._users[simulator] = self._setup.connect_user(simulator)
        engine, config = self._engine, self._setup.config

        def engine_for(task: Task, seed: int) -> PolicyEngine:
            for script in SCRIPTS:
                if policy == script:
                    gym = self._gyms[task.key.gym]
                    return ScriptedEngine(script, gym=gym, task=task, renderer=self._renderer, seed=seed)
            return engine

        return Setting(
            engine_for=engine_for,
            user=self._users[simulator],
            gyms=self._gyms,
            personas=self._setup.personas,
            renderer=self._renderer,
            sampling=Sampling(
                temperature=config.temperature, max_completion_tokens=config.max_completion_tokens
            ),
            max_turns=config.max_turns,
            max_tokens=self._setup.max_tokens,
        )

    # What RLlib asks of every EnvRunner. There is no module here: the engine holds the weights.

    def assert_healthy(self) -> None:
        assert self._thread.is_alive(), "the event loop of the rollouts has ended"

    def get_spaces(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "__env_single__": spaces, "default_policy": spaces}

    def get_metrics(self) -> dict[str, Any]:
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set: an actor has no state that outlives a dialogue."""

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {"config": self.config}

    def stop(self) -> None:
        """Gives up all work and ends the event loop."""

        async def cancel() -> None:
            running = asyncio.all_tasks() - {asyncio.current_task()}
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(STOP_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)


async def _acquire_some(room: asyncio.Semaphore) -> int:
    """Takes all the room there is, but at least one place."""
    await room.acquire()
    taken = 1
    while not room.locked():
        await room.acquire()
        taken += 1
    return taken
