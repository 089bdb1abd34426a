"""The rollout actor: an RLlib EnvRunner that plays many dialogues in parallel on one event loop.

It pulls orders from a work source and sends finished groups back until the source ends, instead of being
called for each. It knows neither what the source does with the results nor any weights.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
from ray.actor import ActorHandle

from actors.concurrency_target import ConcurrencyTarget
from actors.dialogue_slots import DialogueSlots
from actors.engines.client import EngineClient, EngineSet
from actors.engines.protocol import PolicyEngine
from actors.gc_freeze import freeze_heap
from actors.group_summary import summarize
from actors.group_transport import FinishedGroup, GroupSender
from actors.partial_rollouts import (
    CompletedTurns,
    PublishTurn,
    TurnPublisher,
    ignore_turn,
    read_partial_rollouts,
)
from actors.process_info import this_process
from actors.renderer import Renderer
from actors.rllib_env_runner import AsyncEnvRunner
from actors.rollout import RolloutContext, rollout_group
from actors.rollout_setup import RolloutSetup, WorkState, make_rollout_context
from actors.scripts import Script
from actors.trajectory import GroupOrder, GroupSummary
from actors.trajectory_table import to_table, with_reward_seconds
from simulators.user import User
from simulators.users.quality_metrics import NO_COUNTS

Orders = Sequence[GroupOrder] | None


class RolloutActor(AsyncEnvRunner):
    """Plays groups. One Ray actor, one event loop, at most `dialogues_per_actor` dialogues."""

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self._setup: RolloutSetup = config.rollout_setup
        self.worker_id = f"rollout-{self.worker_index}-{uuid.uuid4().hex[:8]}"
        """Unique to this process: a restarted actor has another, so that orders of the dead one are known to
        be lost."""
        self._renderer = Renderer.from_folder(self._setup.policy_folder)
        self._process = this_process()
        self._work: dict[ActorHandle, Future[None]] = {}
        """By work source."""
        self._targets: dict[ActorHandle, ConcurrencyTarget] = {}
        """By work source."""
        self._sampling: Future[list[tuple[GroupSummary, pa.Table]]] | None = None
        """What `sample` is playing."""
        self._sampling_of: tuple[Sequence[GroupOrder], Script | None] | None = None
        """The call of `sample` that started it."""
        self._engine_capacity = self._setup.engine_capacity
        self._gyms = self._setup.open_gyms()
        self._engine: PolicyEngine | None = None
        self._users: dict[str | None, User] = {}
        """By simulator; None: the recipe's mix."""
        freeze_heap()

    def work(
        self,
        work_source: ActorHandle,
        *,
        policy: Script | None = None,
        simulator: str | None = None,
        group_size: int,
        engines: EngineSet | None = None,
    ) -> WorkState:
        """Starts to play the orders of `work_source` in the background, unless it does so already.

        `policy`: a script, or None for the policy behind the engines. `simulator`: the name of the simulated
        user, or None for the recipe's mix. `group_size`: most dialogues of one group. `engines`: those that
        serve now, None if the run has none.
        """
        if engines is not None:
            self._update_engines(engines)
        if work_source not in self._work:
            self._drop_finished_work()
            capacity = max(self._setup.config.dialogues_per_actor, group_size)
            target = self._targets[work_source] = ConcurrencyTarget(
                engine_capacity=self._engine_capacity, max_dialogues=capacity, group_size=group_size
            )
            slots = DialogueSlots(capacity)
            work = self._play_orders(
                work_source,
                context=replace(self._make_context(policy, simulator=simulator), slots=slots),
                slots=slots,
                target=target,
                group_size=group_size,
                publishes_turns=policy is None,  # a script has a state of its own, and could not resume
            )
            self._work[work_source] = self.start_task(work)
        return self.state(work_source)

    def state(self, work_source: ActorHandle | None = None) -> WorkState:
        """The state of all work; `error` is that of the work for `work_source`."""
        work = self._work.get(work_source) if work_source is not None else None
        # RLlib ends an actor on any exception that leaves it, so an error travels as text.
        error = repr(work.exception()) if work and work.done() and work.exception() is not None else ""
        return WorkState(
            worker_index=self.worker_index,
            worker_id=self.worker_id,
            process=self._process,
            is_idle=all(one.done() for one in self._work.values()),
            error=error,
        )

    def _drop_finished_work(self) -> None:
        """Each evaluation has a work source of its own, which is dropped once it has ended. An error
        stays."""
        for source, work in list(self._work.items()):
            if work.done() and not work.cancelled() and work.exception() is None:
                del self._work[source], self._targets[source]

    def _update_engines(self, engines: EngineSet) -> None:
        client = self._connected_engine()
        if isinstance(client, EngineClient):
            self.loop.call_soon_threadsafe(client.update, engines)
        self._engine_capacity = engines.capacity
        for target in self._targets.values():
            target.engine_capacity = engines.capacity

    def sample(
        self,
        *,
        orders: Sequence[GroupOrder] = (),
        policy: Script | None = None,
        wait_s: float | None = None,
        **kwargs: Any,
    ) -> pa.Table | None:
        """RLlib's own interface: plays these orders and returns their tables as one. For work without a work
        source, such as demonstrations.

        None without orders, and if they take longer than `wait_s`: the same call again continues to wait, and
        starts them in a restarted actor. The table itself is returned instead of a reference, since an object
        that an actor puts into the object store dies with the actor.
        """
        if not orders:
            return None
        if self._sampling is None or self._sampling_of != (orders, policy):
            if self._sampling is not None:
                self._sampling.cancel()
            self._sampling = self.start_task(self._play_all(orders, self._make_context(policy)))
            self._sampling_of = (orders, policy)
        if not wait([self._sampling], timeout=wait_s).done:
            return None
        sampled, self._sampling = self._sampling, None
        return pa.concat_tables(table for _, table in sampled.result())

    async def _play_all(
        self, orders: Sequence[GroupOrder], context: RolloutContext
    ) -> list[tuple[GroupSummary, pa.Table]]:
        groups = (self._play_group(order, context, is_trained=False) for order in orders)
        return list(await asyncio.gather(*groups))

    async def _play_orders(
        self,
        work_source: Any,
        *,
        context: RolloutContext,
        slots: DialogueSlots,
        target: ConcurrencyTarget,
        group_size: int,
        publishes_turns: bool,
    ) -> None:
        """Consumes orders of `work_source`, waits for slots and for orders, produces finished groups; returns
        when the source has ended.

        No timeout: a source that dies raises, and a process that was stopped for a while continues, instead
        of ending the run because of the time for which it was stopped."""
        sender = GroupSender(work_source.put.remote)
        async with asyncio.TaskGroup() as tasks:
            publisher = TurnPublisher(
                partial(work_source.publish_turns.remote, self.worker_id), spawn=tasks.create_task
            )
            while True:
                # No slot is kept while waiting for orders: dialogues whose lease ran out may have it.
                await slots.acquire(group_size)
                slots.release(group_size)
                num_groups = max(1, slots.num_free // group_size)
                orders: Orders = await work_source.next_orders.remote(self.worker_id, num_groups)
                if orders is None:
                    return
                for order in orders:
                    await slots.acquire(order.num_dialogues)
                    target.begin(order.task_key.gym)
                    slots.resize(target.num_dialogues())
                    is_trained = order.task_key.split == "train"
                    publish = publisher.for_group(order.group_id)
                    group = self._play_group(
                        order,
                        context,
                        is_trained=is_trained,
                        partial_rollouts=await _partial_rollouts(work_source, order),
                        publish=publish if publishes_turns and is_trained else ignore_turn,
                    )
                    tasks.create_task(self._finish_group(order, group, slots, target, sender))

    async def _finish_group(
        self,
        order: GroupOrder,
        group: Awaitable[tuple[GroupSummary, pa.Table]],
        slots: DialogueSlots,
        target: ConcurrencyTarget,
        sender: GroupSender,
    ) -> None:
        summary, table = await group
        target.end(summary)
        slots.resize(target.num_dialogues())
        await sender.send(FinishedGroup(order=order, summary=summary, payload=table))

    async def _play_group(
        self,
        order: GroupOrder,
        context: RolloutContext,
        *,
        is_trained: bool,
        partial_rollouts: CompletedTurns | None = None,
        publish: PublishTurn = ignore_turn,
    ) -> tuple[GroupSummary, pa.Table]:
        """Plays and scores a group. A dialogue's slot is free when the dialogue ends: later dialogues need
        not wait for a judge."""
        started = time.perf_counter()
        trajectories = await rollout_group(order, context, partial_rollouts=partial_rollouts, publish=publish)
        table = to_table(order, trajectories)
        played = time.perf_counter()
        table = await self._setup.score(table, is_trained)
        table = with_reward_seconds(table, time.perf_counter() - played)
        credited = self._setup.credit(table, is_trained)
        gauges = sum((trajectory.gauges for trajectory in trajectories), NO_COUNTS)
        summary = summarize(order, credited, gauges=gauges, duration_s=time.perf_counter() - started)
        return summary, credited.table

    def _connected_engine(self) -> PolicyEngine:
        if self._engine is None:
            self._engine = self._setup.connect_engine()
        return self._engine

    def _make_context(self, policy: Script | None, *, simulator: str | None = None) -> RolloutContext:
        if simulator not in self._users:
            self._users[simulator] = self._setup.connect_user(simulator)
        return make_rollout_context(
            self._setup,
            policy=policy,
            engine=self._connected_engine(),
            user=self._users[simulator],
            gyms=self._gyms,
            renderer=self._renderer,
        )


async def _partial_rollouts(work_source: Any, order: GroupOrder) -> CompletedTurns | None:
    """The order's completed turns, by trajectory; None if there are none."""
    if not order.num_completed_turns:
        return None
    (rows,) = await work_source.partial_rollouts.remote([order.group_id])
    return read_partial_rollouts(rows, group_id=order.group_id)
