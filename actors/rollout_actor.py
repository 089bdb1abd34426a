"""The rollout actor: an RLlib EnvRunner that plays many dialogues at once on one event loop.

It pulls orders from a feed and hands finished groups back until the feed ends, so it is never driven call by
call and never blocks RLlib's own calls. It refuses to know what the feed does with the results, and holds no
weights.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, cast

import pyarrow as pa
from ray.actor import ActorHandle
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from actors.concurrency_target import ConcurrencyTarget
from actors.dialogue_slots import DialogueSlots
from actors.engines.client import EngineClient
from actors.engines.membership import EngineSet
from actors.engines.protocol import PolicyEngine
from actors.gc_freeze import freeze_heap
from actors.group_summary import summarize
from actors.group_transport import GroupSender, ScoredGroup
from actors.partial_rollouts import (
    CompletedTurn,
    PublishTurn,
    TurnPublisher,
    ignore_turn,
    read_partial_rollouts,
)
from actors.process_info import this_process
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout_group
from actors.rollout_setup import RolloutSetup, WorkState, make_rollout_context
from actors.trajectory import GroupOrder, GroupSummary
from actors.trajectory_table import to_table, with_reward_seconds
from simulators.user import User
from simulators.users.quality_metrics import NO_COUNTS

STOP_TIMEOUT_S = 10.0
Orders = Sequence[GroupOrder] | None


class RolloutActor(EnvRunner, Checkpointable):
    """Rolls out groups. One Ray actor, one event loop, `dialogues_per_actor` dialogues."""

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self._setup: RolloutSetup = config.rollout_setup
        self.holder = f"rollout-{self.worker_index}-{uuid.uuid4().hex[:8]}"
        """This life's name: a restarted actor has another, so that what the dead one held is known to be
        lost."""
        self._renderer = Renderer.from_folder(self._setup.policy_folder)
        self._place = this_process()
        self._work: dict[ActorHandle, Future[None]] = {}
        self._demands: dict[ActorHandle, ConcurrencyTarget] = {}
        """By feed, as `_work`."""
        self._sampled: Future[list[tuple[GroupSummary, pa.Table]]] | None = None
        """What `sample` plays just now, and for which call."""
        self._asked: tuple[Sequence[GroupOrder], str] | None = None
        self._places = self._setup.engine_places
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._gyms = self._setup.open_gyms()
        self._engine: PolicyEngine | None = None
        self._users: dict[str, User] = {}
        """By simulator."""
        freeze_heap()

    def work(
        self,
        feed: ActorHandle,
        *,
        policy: str = "engine",
        simulator: str = "",
        group_size: int,
        engines: EngineSet | None = None,
    ) -> WorkState:
        """Begins to work for `feed` in the background, if it does not yet. `policy` is `engine` or a script's
        name; `simulator` names who plays the user, empty: the recipe's mix. A group of the feed has up to
        `group_size` dialogues. `engines` are those of now, where a run has any."""
        if engines is not None:
            self._renew(engines)
        if feed not in self._work:
            self._forget_ended()
            most = max(self._setup.config.dialogues_per_actor, group_size)
            room = DialogueSlots(most)
            demand = self._demands[feed] = ConcurrencyTarget(
                places=self._places, most=most, group_size=group_size
            )
            setting = replace(self._setting(policy, simulator=simulator), room=room)
            pull = self._pull(
                feed,
                setting=setting,
                room=room,
                demand=demand,
                group_size=group_size,
                tells=policy == "engine",  # a script has a state of its own, and could not go on
            )
            self._work[feed] = asyncio.run_coroutine_threadsafe(pull, self._loop)
        return self.state(feed)

    def state(self, feed: ActorHandle | None = None) -> WorkState:
        """How the work goes; `error` is of the work for `feed`."""
        work = self._work.get(feed) if feed is not None else None
        # RLlib ends an actor on any exception that leaves it, so an error travels as text.
        error = repr(work.exception()) if work and work.done() and work.exception() is not None else ""
        return WorkState(
            worker_index=self.worker_index,
            holder=self.holder,
            place=self._place,
            is_idle=all(one.done() for one in self._work.values()),
            error=error,
        )

    def _forget_ended(self) -> None:
        """Each evaluation has a feed of its own, which nobody needs once it has ended. An error stays."""
        for feed, work in list(self._work.items()):
            if work.done() and not work.cancelled() and work.exception() is None:
                del self._work[feed], self._demands[feed]

    def _renew(self, engines: EngineSet) -> None:
        """Engines have come or gone, or rollout actors have, among whom their places are shared."""
        client = self._connected()
        if isinstance(client, EngineClient):
            self._loop.call_soon_threadsafe(client.renew, engines)
        self._places = engines.places
        for demand in self._demands.values():
            demand.places = engines.places

    def sample(
        self,
        *,
        orders: Sequence[GroupOrder] = (),
        policy: str = "engine",
        wait_s: float | None = None,
        **kwargs: Any,
    ) -> pa.Table | None:
        """Rolls out these orders, waits for them, and gives their tables as one: RLlib's own way to ask.

        None without orders, and where they take longer than `wait_s`: the same call again goes on waiting for
        them, and begins them in a life that knows nothing of them. For work that needs no feed, such as
        demonstrations. The table itself, since what an actor puts into the object store dies with it, and
        what it returns is the caller's.
        """
        if not orders:
            return None
        if self._sampled is None or self._asked != (orders, policy):
            if self._sampled is not None:
                self._sampled.cancel()
            rolling = self._roll_all(orders, self._setting(policy))
            self._sampled = asyncio.run_coroutine_threadsafe(rolling, self._loop)
            self._asked = (orders, policy)
        if not wait([self._sampled], timeout=wait_s).done:
            return None
        sampled, self._sampled = self._sampled, None
        return pa.concat_tables(table for _, table in sampled.result())

    async def _roll_all(
        self, orders: Sequence[GroupOrder], setting: RolloutContext
    ) -> list[tuple[GroupSummary, pa.Table]]:
        rolled = (self._roll(order, setting, is_trained=False) for order in orders)
        return list(await asyncio.gather(*rolled))

    async def _pull(
        self,
        feed: ActorHandle,
        *,
        setting: RolloutContext,
        room: DialogueSlots,
        demand: ConcurrencyTarget,
        group_size: int,
        tells: bool,
    ) -> None:
        """Consumes orders of `feed`, waits for room and for orders, produces finished groups; ends with the
        feed.

        No time limit: a feed that dies raises, and a process that was stopped for a while goes on where it
        was, instead of ending the run by the time that it slept through.
        """
        deliveries = GroupSender(lambda delivery: cast(Awaitable[object], feed.put.remote(delivery)))
        async with asyncio.TaskGroup() as groups:
            teller = TurnPublisher(
                lambda ids, rows: cast(Awaitable[object], feed.note_turns.remote(self.holder, ids, rows)),
                spawn=groups.create_task,
            )
            while True:
                # No place is kept while nothing is ordered: dialogues that yielded theirs may have it.
                await room.enter(group_size)
                room.leave(group_size)
                num_groups = max(1, room.num_free // group_size)
                orders = await cast(Awaitable[Orders], feed.next_orders.remote(self.holder, num_groups))
                if orders is None:
                    return
                for order in orders:
                    await room.enter(order.num_dialogues)
                    demand.begin(order.task_key.gym)
                    room.resize(demand.num_dialogues())
                    is_trained = order.task_key.split == "train"
                    rolling = self._roll(
                        order,
                        setting,
                        is_trained=is_trained,
                        begun=await _begun(feed, order) if order.num_begun else None,
                        tell=teller.of(order.group_id) if tells and is_trained else ignore_turn,
                    )
                    groups.create_task(self._roll_for(order, rolling, setting, demand, deliveries))

    async def _roll_for(
        self,
        order: GroupOrder,
        rolling: Awaitable[tuple[GroupSummary, pa.Table]],
        setting: RolloutContext,
        demand: ConcurrencyTarget,
        deliveries: GroupSender,
    ) -> None:
        summary, table = await rolling
        demand.end(summary)
        if setting.room:
            setting.room.resize(demand.num_dialogues())
        await deliveries.send(ScoredGroup(order=order, summary=summary, table=table))

    async def _roll(
        self,
        order: GroupOrder,
        setting: RolloutContext,
        *,
        is_trained: bool,
        begun: Mapping[int, Sequence[CompletedTurn]] | None = None,
        tell: PublishTurn = ignore_turn,
    ) -> tuple[GroupSummary, pa.Table]:
        """Plays a group and has it scored. A dialogue's place is free when it ends: the next ones need not
        wait for a judge."""
        started = time.perf_counter()
        trajectories = await rollout_group(order, setting, begun=begun, tell=tell)
        table = to_table(order, trajectories)
        rolled = time.perf_counter()
        table = await self._setup.score(table, is_trained)
        table = with_reward_seconds(table, time.perf_counter() - rolled)
        gauges = sum((trajectory.gauges for trajectory in trajectories), NO_COUNTS)
        return summarize(order, table, gauges=gauges, duration_s=time.perf_counter() - started), table

    def _connected(self) -> PolicyEngine:
        if self._engine is None:
            self._engine = self._setup.connect_engine()
        return self._engine

    def _setting(self, policy: str, *, simulator: str = "") -> RolloutContext:
        if simulator not in self._users:
            self._users[simulator] = self._setup.connect_user(simulator)
        return make_rollout_context(
            self._setup,
            policy=policy,
            engine=self._connected(),
            user=self._users[simulator],
            gyms=self._gyms,
            renderer=self._renderer,
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


async def _begun(feed: ActorHandle, order: GroupOrder) -> dict[int, list[CompletedTurn]]:
    """The turns of an order that are over, by trajectory."""
    (rows,) = await cast(Awaitable[list[list[pa.Buffer]]], feed.begun.remote([order.group_id]))
    return read_partial_rollouts(rows, group_id=order.group_id)
