"""The rollout actors of a run: sets them to work, replaces those that die, and lets them join and leave."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from actors.engines.engine_clock import EngineUsage
from actors.process_info import ProcessInfo
from actors.rollout_setup import WorkState
from actors.scripts import Script
from actors.trajectory import GroupOrder
from cluster.console.progress import warn
from cluster.workers.engine_pool import EnginePool
from cluster.workers.node_drain import NodeDrainWatch
from cluster.workers.rollout_health import RolloutHealth
from cluster.workers.rollout_membership import RolloutMembership
from cluster.workers.services import create_order_list
from learners.buffer.buffered_group import BufferedGroup
from learners.buffer.work_source import LostGroup

LOOK_EVERY_S = 0.5
LOOK_BESIDE_EVERY_S = 3.0
CALL_TIMEOUT_S = 60.0
RESTART_TIMEOUT_S = 120.0
"""Longest time without a living rollout actor; Ray restarts a dead one in some seconds."""
PROBE_TIMEOUT_S = 1.0
"""Wait for an actor that is being started again; it is probed at every look, and the others need not wait."""
WITHOUT_PROGRESS_S = 300.0
"""A chunk of demonstrations takes no longer."""
STUCK_S = 900.0
"""A list of orders that gains no finished group for so long beyond the time after which a group is given to
another is stuck."""
SILENT_S = 30.0
"""An actor that has not answered for so long is ended, and its groups go to others."""
HOLD_S = 2.0
"""Longest that an actor keeps the driver waiting for demonstrations before it says that it works on."""
MOST_TRIES = 3


class RolloutPool:
    """All rollout actors of a run, as one."""

    def __init__(
        self,
        env_runners: Any,
        *,
        engines: EnginePool,
        restore: Callable[[], object],
        group_timeout_s: float,
        notices: NodeDrainWatch | None = None,
    ):
        """`notices` tells of nodes that are about to go; None: Ray does."""
        self._env_runners = env_runners
        self._engines = engines
        self._restore = restore
        """Brings restarted actors back into `env_runners`."""
        self._group_timeout_s = group_timeout_s
        self._roll_call = RolloutHealth(env_runners)
        self.crew = RolloutMembership(env_runners)
        self._notices = notices or NodeDrainWatch()
        self._absent_since: float | None = None
        self._holders: dict[ActorHandle, dict[int, str]] = {}
        """By feed: which life of each rollout actor works for it."""
        self.beside: Callable[[], None] = lambda: None
        """Called now and then while dialogues are played that no step waits for."""
        self._looked_beside_at_s = -math.inf
        """By `time.monotonic()`."""
        self._places: dict[int, ProcessInfo] = {}
        """Where each was when it last answered."""

    def supervise(
        self,
        feed: ActorHandle,
        *,
        policy: Script | None = None,
        simulator: str | None = None,
        group_size: int,
    ) -> None:
        """Every living actor works for `feed` from here on, with the engines of now. One that has long been
        silent is ended. Orders of lives that ended are issued again; says which groups were lost, and who had
        them.

        Cheap where nothing changed, and never long. Raises where all actors stay away, one failed at its work
        or no engine can be started.
        """
        self._restore()
        self._engines.look()
        self._heed_notices()
        self.crew.admit()
        _say_lost(ray.get(feed.pop_lost.remote(), timeout=CALL_TIMEOUT_S))
        engines = self._engines.current(num_sharing=self.crew.num_here)
        states: list[WorkState] = self._roll_call.ask(
            lambda actor: actor.work(
                feed, policy=policy, simulator=simulator, group_size=group_size, engines=engines
            ),
            without=self.crew.leaving,
        )
        for state in states:
            if state.error:
                raise RuntimeError(f"rollout actor {state.worker_index} stopped working: {state.error}")
            self._places[state.worker_index] = state.process
        self._end_silent()
        self._let_leave()
        self._expect_alive(len(states))
        holders = {state.worker_index: state.worker_id for state in states}
        for index, holder in self._holders.get(feed, {}).items():
            if index in self._roll_call.silent_s or index in self.crew.leaving:
                holders[index] = holder  # perhaps only busy, or at its last dialogues
            elif holders.get(index) != holder:
                warn(f"{self._name(index)} has died: others get its groups")
                ray.get(feed.forget.remote(holder), timeout=CALL_TIMEOUT_S)
        self._holders[feed] = holders

    def look(self) -> None:
        """The same where no dialogues are played: who has died or long been silent is started again, and
        engines are replaced."""
        self._restore()
        self._engines.look()
        self._heed_notices()
        self.crew.admit()
        states: list[WorkState] = self._roll_call.ask(lambda actor: actor.state(), without=self.crew.leaving)
        self._places |= {state.worker_index: state.process for state in states}
        self._end_silent()
        self._let_leave()
        self._expect_alive(len(states))

    def _look_beside(self) -> None:
        if time.monotonic() - self._looked_beside_at_s >= LOOK_BESIDE_EVERY_S:
            self.beside()
            self._looked_beside_at_s = time.monotonic()

    def _look_at_engines(self) -> None:
        """Beside demonstrations, over which rollout actors may be too busy to answer."""
        self._engines.look()
        self._engines.give()
        self._look_beside()

    def scale(self, num_actors: int) -> None:
        """From now on there are so many: more join when the cluster has room for them, and of too many the
        newest leave after the dialogues that they have begun. Returns at once."""
        self._dismiss(self.crew.scale(num_actors))

    def _heed_notices(self) -> None:
        """Who is on a node that is about to go begins nothing new, and others begin in its place."""
        if not (nodes := self._notices.nodes()):
            return
        self._engines.give_notice(nodes)
        going = [index for index, place in self._places.items() if place.node_id in nodes]
        told = self.crew.replace(going)
        for index in told:
            warn(f"{self._name(index)}: its node is about to go: another is started")
        self._dismiss(told)

    def _dismiss(self, leaving: Sequence[int]) -> None:
        """They get no more orders."""
        told = [
            feed.dismiss.remote(holders[index])
            for feed, holders in self._holders.items()
            for index in leaving
            if index in holders
        ]
        ray.get(told, timeout=CALL_TIMEOUT_S)

    def _let_leave(self) -> None:
        """Ends those who were to leave and have nothing left to do, or have died or taken too long: what they
        hold goes to others first."""
        if not self.crew.leaving:
            return
        staying = [i for i in self._env_runners.healthy_env_runner_ids() if i not in self.crew.leaving]
        states: list[WorkState] = self._roll_call.ask(lambda actor: actor.state(), without=staying)
        idle = [state.worker_index for state in states if state.is_idle]
        ended = sorted({*idle, *self.crew.gone(), *self.crew.overdue()})
        for index in ended:
            for feed, holders in self._holders.items():
                if holder := holders.pop(index, None):
                    ray.get(feed.forget.remote(holder), timeout=CALL_TIMEOUT_S)
            self._roll_call.forget(index)
            self._places.pop(index, None)
        self.crew.end(ended)

    def _name(self, index: int) -> str:
        """For people, who may want to look at its log or its stack."""
        place = self._places.get(index)
        return f"rollout actor {index} ({place})" if place else f"rollout actor {index}"

    def _end_silent(self) -> None:
        """Ray starts those anew that have been silent for too long, whatever they were silent about."""
        for index, silent_s in self._roll_call.silent_s.items():
            if silent_s >= min(SILENT_S, self._group_timeout_s):
                warn(f"{self._name(index)} has not answered for {silent_s:.0f} s: it is started again")
                self._roll_call.end(index)
                self._absent_since = None  # from here on it has its time to come back

    def engine_usage(self) -> list[EngineUsage]:
        """What each engine's time went to since the last call of this."""
        return self._engines.usage()

    def _expect_alive(self, num_alive: int) -> None:
        """Raises where no rollout actor has lived for too long."""
        if num_alive:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = time.monotonic()
        elif time.monotonic() - self._absent_since > RESTART_TIMEOUT_S:
            raise RuntimeError(
                f"no rollout actor has lived for {RESTART_TIMEOUT_S:.0f} s: see /tmp/ray/session_latest/logs"
            )

    def sample(
        self, chunks: Mapping[str, Sequence[GroupOrder]], *, policy: Script
    ) -> Iterator[tuple[str, ray.ObjectRef]]:
        """Rolls out chunks of orders in rounds, a chunk an actor: each chunk's name, with a reference to its
        table, as they come. A chunk whose actor died is done again by another. The tables are the driver's,
        whoever dies later."""
        waiting = dict(chunks)
        num_tries = 0
        while waiting:
            self._restore()
            self._look_at_engines()
            workers = self._env_runners.healthy_env_runner_ids()
            self._expect_alive(len(workers))
            if not workers:
                time.sleep(LOOK_EVERY_S)
                continue
            given = dict(zip(workers, waiting, strict=False))
            sampling = self._roll_call.ask_for_payloads(
                {worker: partial(_sample, orders=waiting[i], policy=policy) for worker, i in given.items()},
                silent_s=SILENT_S,
                timeout_s=WITHOUT_PROGRESS_S,
                meanwhile=self._look_at_engines,
            )
            sampled: set[int] = set()
            for worker, table in sampling:
                sampled.add(worker)
                del waiting[given[worker]]
                yield given[worker], table
            for worker in given.keys() - sampled:
                warn(
                    f"{self._name(worker)} has brought no demonstrations: it has died, gave no answer for "
                    f"{SILENT_S:.0f} s or took longer than {WITHOUT_PROGRESS_S:.0f} s: they are played again"
                )
            num_tries = 0 if sampled else num_tries + 1
            if num_tries == MOST_TRIES:
                raise RuntimeError(
                    f"rollout actors failed {MOST_TRIES} times in a row: see /tmp/ray/session_latest/logs"
                )

    def run(
        self,
        orders: Sequence[GroupOrder],
        *,
        policy: Script | None,
        simulator: str | None = None,
        finish: Callable[[Sequence[pa.Table]], None],
    ) -> tuple[ActorHandle, list[BufferedGroup]]:
        """Rolls out a list of orders: the feed that holds their tables, and the finished groups in order.

        The dialogues of every group are given to `finish`, a table a group, within about a second of its end.
        """
        feed = create_order_list(orders, group_timeout_s=self._group_timeout_s)
        group_size = max(order.num_dialogues for order in orders)
        done, changed_at = 0, time.monotonic()
        while done < len(orders):
            self._engines.give()
            self.supervise(feed, policy=policy, simulator=simulator, group_size=group_size)
            self._look_beside()
            time.sleep(LOOK_EVERY_S)
            tables = ray.get(feed.finished_since.remote(done), timeout=CALL_TIMEOUT_S)
            if tables:
                finish(tables)
                done, changed_at = done + len(tables), time.monotonic()
            elif time.monotonic() - changed_at > self._group_timeout_s + STUCK_S:
                break  # `results` says what is stuck
        _say_lost(ray.get(feed.pop_lost.remote(), timeout=CALL_TIMEOUT_S))
        groups = ray.get(feed.results.remote(timeout_s=1.0), timeout=CALL_TIMEOUT_S)
        self._holders.pop(feed, None)
        return feed, groups


def _say_lost(groups: Sequence[LostGroup]) -> None:
    """A line for each who had them: a hundred may be lost at once."""
    by_holder = defaultdict[str, list[LostGroup]](list)
    for group in groups:
        by_holder[group.holder].append(group)
    for holder, lost in by_holder.items():
        ids = sorted(group.group_id for group in lost)
        which = f"group {ids[0]}" if len(ids) == 1 else f"{len(ids)} groups from {ids[0]} to {ids[-1]}"
        longest_s = max(group.held_s for group in lost)
        warn(f"lost: {which}, which {holder} had for {longest_s:.1f} s: given to others")


def _sample(actor: Any, *, orders: Sequence[GroupOrder], policy: Script) -> pa.Table | None:
    return actor.sample(orders=orders, policy=policy, wait_s=HOLD_S)
