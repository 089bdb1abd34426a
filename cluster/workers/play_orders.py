"""Plays given orders with the rollout actors: demonstrations in chunks, evaluations from a fixed work
source."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.group_transport import FinishedGroup
from actors.scripts import Script
from actors.trajectory import GroupOrder
from cluster.console.log import warn
from cluster.ray_cluster.start import actor_on_driver_node
from cluster.workers.rollout_pool import (
    CALL_TIMEOUT_S,
    LOGS,
    UNRESPONSIVE_S,
    Assignment,
    RolloutPool,
    report_reassigned,
)
from cluster.workers.supervisor import Supervisor
from learners.buffer.fixed_work_source import FixedWorkSource

POLL_EVERY_S = 0.5
TICK_EVERY_S = 3.0
CHUNK_TIMEOUT_S = 300.0
"""Longest time that one chunk of demonstrations may take."""
STALL_TIMEOUT_S = 900.0
"""Orders that gain no finished group for so long, beyond the time after which a group is reassigned, are
stuck."""
HOLD_S = 2.0
"""Longest that an actor holds a call for demonstrations before it answers that it is still working."""
MAX_FAILED_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call for a chunk of demonstrations to one actor."""

    has_payload: ray.ObjectRef
    payload: ray.ObjectRef
    sent_at: float
    """By `time.monotonic()`."""


class OrderPlayer:
    """Plays lists of orders that no training step waits for."""

    def __init__(self, rollouts: RolloutPool, supervisor: Supervisor):
        self._rollouts = rollouts
        self._supervisor = supervisor

    def run(
        self,
        orders: Sequence[GroupOrder],
        *,
        policy: Script | None,
        simulator: str | None = None,
        finish: Callable[[Sequence[pa.Table]], None],
    ) -> tuple[ActorHandle, list[FinishedGroup]]:
        """Plays a list of orders: returns the work source that holds their tables, and the finished groups in
        the list's order. `finish` gets the dialogues of every group, a table a group, within about a second
        of its end."""
        group_timeout_s = self._rollouts.group_timeout_s
        source = create_fixed_source(orders, group_timeout_s=group_timeout_s)
        group_size = max(order.num_dialogues for order in orders)
        assignment = Assignment(source=source, policy=policy, simulator=simulator, group_size=group_size)
        num_done, progress_at = 0, time.monotonic()
        while num_done < len(orders):
            self._supervisor.tick("evaluation", assignment=assignment)
            time.sleep(POLL_EVERY_S)
            tables = ray.get(source.finished_since.remote(num_done), timeout=CALL_TIMEOUT_S)
            if tables:
                finish(tables)
                num_done, progress_at = num_done + len(tables), time.monotonic()
            elif time.monotonic() - progress_at > group_timeout_s + STALL_TIMEOUT_S:
                break  # `results` raises and names the stuck orders
        report_reassigned(source)
        groups = ray.get(source.results.remote(timeout_s=1.0), timeout=CALL_TIMEOUT_S)
        self._rollouts.release(source)
        return source, groups

    def sample(
        self, chunks: Mapping[str, Sequence[GroupOrder]], *, policy: str
    ) -> Iterator[tuple[str, ray.ObjectRef]]:
        """Plays chunks of orders in rounds, one chunk per actor: yields each chunk's name with a reference to
        its table, as they are finished. A chunk whose actor died is played again by another. The driver owns
        the tables, so they outlive the actors."""
        remaining = dict(chunks)
        num_failed_rounds = 0
        while remaining:
            self._supervisor.tick("demonstrations")
            living = self._rollouts.living()
            if not living:
                time.sleep(POLL_EVERY_S)
                continue
            names = dict(zip(living, remaining, strict=False))
            finished: set[int] = set()
            for index, table in self._round({i: remaining[name] for i, name in names.items()}, policy):
                finished.add(index)
                del remaining[names[index]]
                yield names[index], table
            for index in names.keys() - finished:
                warn(
                    f"{self._rollouts.describe(index)} returned no demonstrations: it died, did not answer "
                    f"for {UNRESPONSIVE_S:.0f} s or took longer than {CHUNK_TIMEOUT_S:.0f} s: retried"
                )
            num_failed_rounds = 0 if finished else num_failed_rounds + 1
            if num_failed_rounds == MAX_FAILED_ROUNDS:
                raise RuntimeError(f"rollout actors failed {MAX_FAILED_ROUNDS} times in a row: {LOGS}")

    def _round(
        self, chunks: Mapping[int, Sequence[GroupOrder]], policy: str
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """One chunk per actor: worker index and table of each, as they are finished. An actor answers with
        None after `HOLD_S` if it is still working, and is called again.

        An actor that dies yields nothing; one that does not answer for `UNRESPONSIVE_S`, or takes longer than
        `CHUNK_TIMEOUT_S` in all, is restarted.
        """
        deadline = time.monotonic() + CHUNK_TIMEOUT_S
        calls = {index: self._call(index, orders, policy) for index, orders in chunks.items()}
        while calls:
            answers = [call.has_payload for call in calls.values()]
            ready, _ = ray.wait(answers, num_returns=len(answers), timeout=TICK_EVERY_S)
            for index, call in list(calls.items()):
                if call.has_payload in ready:
                    del calls[index]
                    try:
                        has_payload = ray.get(call.has_payload)
                    except RayError:
                        self._rollouts.mark_dead(index)
                        continue
                    if has_payload:
                        yield index, call.payload
                    elif time.monotonic() > deadline:
                        self._rollouts.health.restart(index)
                    else:
                        calls[index] = self._call(index, chunks[index], policy)
                elif time.monotonic() - call.sent_at > UNRESPONSIVE_S:
                    del calls[index]
                    self._rollouts.health.restart(index)
            if calls:
                self._supervisor.tick("demonstrations")

    def _call(self, index: int, orders: Sequence[GroupOrder], policy: str) -> _Call:
        def sample(actor: Any) -> tuple[bool, pa.Table | None]:
            table = actor.sample(orders=orders, policy=policy, wait_s=HOLD_S)
            return table is not None, table

        # Two returns: the driver owns the table, unlike an object that the actor puts into the store itself.
        call: Any = self._rollouts.actor(index).apply.options(num_returns=2)
        has_payload, payload = call.remote(sample)
        return _Call(has_payload=has_payload, payload=payload, sent_at=time.monotonic())


def create_fixed_source(orders: Sequence[GroupOrder], *, group_timeout_s: float) -> ActorHandle:
    """A work source of these orders, on the driver's node."""
    return actor_on_driver_node(FixedWorkSource).remote(orders, group_timeout_s=group_timeout_s)
