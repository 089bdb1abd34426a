"""One engine of a run as the driver sees it: the phase of its life, where its processes are, how they end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.engines.protocol import EngineGoneError
from actors.process_info import ProcessInfo, end_processes

ReplicaPhase = Literal["starts", "waits", "receives", "serves", "leaves"]
"""It starts, waits for its first weights, receives them, serves, and may have to leave."""
GONE = (RayActorError, EngineGoneError)
"""What an engine's calls raise once it will serve nothing any more."""


@dataclass(kw_only=True, slots=True, eq=False)
class EngineReplica:
    """One engine."""

    actor: Any
    name: str
    is_first: bool
    """Whether it is one of those that the run began with."""
    phase: ReplicaPhase = "starts"
    since: float
    """When the phase began, by `time.monotonic`, as all moments here."""
    pending: ray.ObjectRef
    """While it starts: done once it has, with its place. Later its last check, or usage while it leaves."""
    asked_at: float
    place: ProcessInfo | None = None
    is_going: bool = False
    """Whether its node has been given notice: it serves until another does in its place."""

    @classmethod
    def begin(cls, actor: Any, *, name: str, is_first: bool) -> "EngineReplica":
        """Has the engine start."""
        now = time.monotonic()
        started = actor.start.remote()
        return cls(actor=actor, name=name, is_first=is_first, since=now, pending=started, asked_at=now)

    @property
    def is_done(self) -> bool:
        """Whether `pending` is."""
        done, _ = ray.wait([self.pending], timeout=0)
        return bool(done)

    def fault(self) -> RayError | None:
        """What its start raised by itself; None where it has started, or has died."""
        try:
            ray.get(self.pending)
        except RayActorError as error:
            return error if error.actor_init_failed else None
        except RayError as error:
            return None if is_gone(error) else error
        return None

    def enter(self, phase: ReplicaPhase) -> None:
        self.phase, self.since = phase, time.monotonic()

    def started(self, place: ProcessInfo) -> None:
        self.place = place
        self.enter("waits")
        self.check()

    def check(self) -> None:
        """Asks it whether it is well."""
        self.pending, self.asked_at = self.actor.check.remote(), time.monotonic()

    def leave(self) -> None:
        """It is asked what its time went to until nothing did."""
        self.enter("leaves")
        self.pending = self.actor.usage.remote()

    def end(self) -> None:
        """Ends its process, and vLLM's, which a killed parent leaves behind, stopped or not."""
        ray.kill(self.actor)
        if self.place is not None:
            there = NodeAffinitySchedulingStrategy(self.place.node_id, soft=False)
            end: Any = ray.remote(end_processes).options(num_cpus=0, scheduling_strategy=there)
            end.remote(self.place.processes)  # not waited for: the node may be gone with it

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.place else self.name


def is_gone(error: BaseException) -> bool:
    """Whether what an engine's call raised says that it will serve nothing any more."""
    return isinstance(error, GONE)


def in_one_line(error: BaseException) -> str:
    """What an engine's call raised, after the traceback that Ray puts before it."""
    lines: Sequence[str] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
