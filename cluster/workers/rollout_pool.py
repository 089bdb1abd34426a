"""All rollout actors of a run as one object: sets them to work for a work source, restarts unresponsive ones,
reassigns the groups of dead ones, and lets actors join and leave while dialogues are played.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.process_info import ProcessInfo
from actors.rollout_setup import WorkState
from actors.scripts import Script
from cluster.console.log import warn
from cluster.workers.engine_pool import EnginePool
from cluster.workers.rllib_internals import mark_unhealthy
from cluster.workers.rollout_health import RolloutHealth
from cluster.workers.rollout_membership import RolloutMembership
from learners.buffer.work_source import ReassignedGroup

CALL_TIMEOUT_S = 60.0
NONE_ALIVE_TIMEOUT_S = 120.0
"""Longest time without a living rollout actor; Ray restarts a dead one within seconds."""
PROBE_TIMEOUT_S = 1.0
"""Wait for the ping of a restarting actor; every poll pings it again, and the others need not wait."""
UNRESPONSIVE_S = 30.0
"""An actor that has not answered for so long is restarted, and its groups are reassigned."""
LOGS = "see /tmp/ray/session_latest/logs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What the rollout actors work on."""

    source: ActorHandle
    """The `WorkSource` that hands out group orders: the buffer, or a fixed list."""
    policy: Script | None = None
    """A script, or None: the engines."""
    simulator: str | None = None
    """None: the recipe's mix of simulators."""
    group_size: int


class RolloutPool:
    """All rollout actors of a run."""

    def __init__(self, env_runners: Any, *, engines: EnginePool, group_timeout_s: float):
        """`env_runners` is RLlib's EnvRunnerGroup. A group that is not finished after `group_timeout_s` is
        reassigned by its work source."""
        self.group_timeout_s = group_timeout_s
        self.health = RolloutHealth(env_runners)
        self.membership = RolloutMembership(env_runners)
        self._env_runners = env_runners
        self._engines = engines
        self._none_alive_since: float | None = None
        self._workers: dict[ActorHandle, dict[int, str]] = {}
        """By work source: the process name by which each rollout actor holds orders; a restarted actor has a
        new one."""
        self._processes: dict[int, ProcessInfo] = {}
        """Where each actor ran when it last answered."""

    def poll(self, assignment: Assignment | None) -> None:
        """Health check of all actors. With an assignment every living actor works on it afterwards, with the
        engines that serve now, and groups that dead actors held are reassigned; None only asks for states.

        Cheap if nothing changed, never blocks for long. Raises RuntimeError if no actor has been alive for
        `NONE_ALIVE_TIMEOUT_S`, or if one failed at its work.
        """
        self._probe()
        self.membership.admit()
        if assignment:
            report_reassigned(assignment.source)
        states: list[WorkState] = self.health.ask(
            self._question(assignment), without=self.membership.draining
        )
        for state in states:
            if assignment and state.error:
                raise RuntimeError(f"rollout actor {state.worker_index} stopped working: {state.error}")
            self._processes[state.worker_index] = state.process
        self._restart_unresponsive()
        self._remove_drained()
        self._require_alive(len(states))
        if assignment:
            self._reassign_dead(assignment.source, states)

    def living(self) -> list[int]:
        """Worker indexes of living actors, restarted ones included. Raises as `poll` does."""
        self._probe()
        indexes = self._env_runners.healthy_env_runner_ids()
        self._require_alive(len(indexes))
        return indexes

    def actor(self, index: int) -> ActorHandle:
        """The handle of one actor."""
        return self.membership.actors[index]

    def mark_dead(self, index: int) -> None:
        """Its call failed: it gets no more until RLlib's probe finds it restarted."""
        mark_unhealthy(self._env_runners, index)

    def describe(self, index: int) -> str:
        """The actor with its pid and node, for people who look for its log or its stack."""
        process = self._processes.get(index)
        return f"rollout actor {index} ({process})" if process else f"rollout actor {index}"

    def scale(self, num_actors: int) -> None:
        """Changes the number of actors: new ones join once the cluster has room, the newest of too many leave
        after the dialogues that they have begun. Returns at once."""
        self._drain(self.membership.scale(num_actors))

    def drain_nodes(self, nodes: Collection[str]) -> None:
        """Actors on these nodes, by Ray's node ids, get no more orders, and others are created."""
        on_nodes = [index for index, process in self._processes.items() if process.node_id in nodes]
        draining = self.membership.replace(on_nodes)
        for index in draining:
            warn(f"{self.describe(index)}: its node is being drained: a replacement is started")
        self._drain(draining)

    def release(self, source: ActorHandle) -> None:
        """The work source is finished: no actor holds anything of it."""
        self._workers.pop(source, None)

    def _probe(self) -> None:
        """Brings restarted actors back into the group. They hold no weights, so nothing is sent to them."""
        self._env_runners.probe_unhealthy_env_runners(timeout_seconds=PROBE_TIMEOUT_S)

    def _question(self, assignment: Assignment | None) -> Callable[[Any], WorkState]:
        if assignment is None:
            return lambda actor: actor.state()
        engines = self._engines.snapshot(num_sharing=self.membership.num_active)
        source, policy, simulator = assignment.source, assignment.policy, assignment.simulator
        group_size = assignment.group_size
        # Plain values only: what the function refers to is pickled with it.
        return lambda actor: actor.work(
            source, policy=policy, simulator=simulator, group_size=group_size, engines=engines
        )

    def _reassign_dead(self, source: ActorHandle, states: Sequence[WorkState]) -> None:
        """Has the source reissue the orders of processes that have ended."""
        workers = {state.worker_index: state.worker_id for state in states}
        for index, worker in self._workers.get(source, {}).items():
            if index in self.health.unresponsive_s or index in self.membership.draining:
                workers[index] = worker  # perhaps only busy, or at its last dialogues
            elif workers.get(index) != worker:
                warn(f"{self.describe(index)} has died: its groups are reassigned")
                ray.get(source.reassign_groups_of.remote(worker), timeout=CALL_TIMEOUT_S)
        self._workers[source] = workers

    def _drain(self, indexes: Sequence[int]) -> None:
        """Work sources hand these actors no more orders."""
        calls = [
            source.drain.remote(workers[index])
            for source, workers in self._workers.items()
            for index in indexes
            if index in workers
        ]
        ray.get(calls, timeout=CALL_TIMEOUT_S)

    def _remove_drained(self) -> None:
        """Removes draining actors that are idle, dead or out of time. What they hold is reassigned first."""
        if not (draining := self.membership.draining):
            return
        others = [index for index in self._env_runners.healthy_env_runner_ids() if index not in draining]
        states: list[WorkState] = self.health.ask(lambda actor: actor.state(), without=others)
        idle = [state.worker_index for state in states if state.is_idle]
        removed = sorted({*idle, *self.membership.expired()})
        for index in removed:
            for source, workers in self._workers.items():
                if worker := workers.pop(index, None):
                    ray.get(source.reassign_groups_of.remote(worker), timeout=CALL_TIMEOUT_S)
            self.health.forget(index)
            self._processes.pop(index, None)
        self.membership.remove(removed)

    def _restart_unresponsive(self) -> None:
        for index, seconds in self.health.unresponsive_s.items():
            if seconds >= min(UNRESPONSIVE_S, self.group_timeout_s):
                warn(f"{self.describe(index)} has not answered for {seconds:.0f} s: it is restarted")
                self.health.restart(index)
                self._none_alive_since = None  # from now on it has its time to come back

    def _require_alive(self, num_alive: int) -> None:
        """Raises RuntimeError if no rollout actor has been alive for too long."""
        if num_alive:
            self._none_alive_since = None
        elif self._none_alive_since is None:
            self._none_alive_since = time.monotonic()
        elif time.monotonic() - self._none_alive_since > NONE_ALIVE_TIMEOUT_S:
            raise RuntimeError(f"no rollout actor has been alive for {NONE_ALIVE_TIMEOUT_S:.0f} s: {LOGS}")


def report_reassigned(source: ActorHandle) -> None:
    """Tells of groups that the source has reissued since the last call, one line per former worker."""
    reassigned: Sequence[ReassignedGroup] = ray.get(source.pop_reassigned.remote(), timeout=CALL_TIMEOUT_S)
    by_worker = defaultdict[str, list[ReassignedGroup]](list)
    for group in reassigned:
        by_worker[group.worker].append(group)
    for worker, groups in by_worker.items():
        ids = sorted(group.group_id for group in groups)
        which = f"group {ids[0]}" if len(ids) == 1 else f"{len(ids)} groups (ids {ids[0]}-{ids[-1]})"
        longest_s = max(group.held_s for group in groups)
        warn(f"reassigned {which} held {longest_s:.1f} s by {worker}")
