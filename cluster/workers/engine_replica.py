"""One policy engine as the driver sees it: its phase, where its processes run, and how they are ended."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.engines.protocol import EngineGoneError
from actors.process_info import ProcessInfo, end_processes

ReplicaPhase = Literal["starting", "awaiting_weights", "receiving", "serving", "draining"]
"""In this order. Rollout actors know an engine while it serves."""


@dataclass(kw_only=True, slots=True, eq=False)
class EngineReplica:
    """One engine."""

    actor: Any
    name: str
    is_initial: bool
    """Whether the run started with it."""
    phase: ReplicaPhase = "starting"
    since: float
    """When the phase began, by `time.monotonic`, as all times here."""
    pending: ray.ObjectRef
    """The open call: `start`, later `check`, and `usage` while it drains."""
    asked_at: float
    process: ProcessInfo | None = None
    is_retiring: bool = False
    """Whether its node is being drained: it serves until a replacement does."""

    @classmethod
    def start(cls, actor: Any, *, name: str, is_initial: bool) -> "EngineReplica":
        """Has the engine start."""
        now, pending = time.monotonic(), actor.start.remote()
        return cls(actor=actor, name=name, is_initial=is_initial, since=now, pending=pending, asked_at=now)

    @property
    def has_answered(self) -> bool:
        """Whether the open call is done."""
        done, _ = ray.wait([self.pending], timeout=0)
        return bool(done)

    def start_error(self) -> RayError | None:
        """What the engine's own start raised, which any other engine would raise too. None if it has started,
        or if its process died."""
        try:
            ray.get(self.pending)
        except RayActorError as error:
            return error if error.actor_init_failed else None
        except RayError as error:
            return None if is_gone(error) else error
        return None

    def enter(self, phase: ReplicaPhase) -> None:
        self.phase, self.since = phase, time.monotonic()

    def mark_started(self, process: ProcessInfo) -> None:
        self.process = process
        self.enter("awaiting_weights")
        self.ping()

    def ping(self) -> None:
        """Begins a health check."""
        self.pending, self.asked_at = self.actor.check.remote(), time.monotonic()

    def drain(self) -> None:
        """It gets no new requests; its usage says when the last one is finished."""
        self.enter("draining")
        self.pending = self.actor.usage.remote()

    def kill(self) -> None:
        """Ends its process, and vLLM's own, which a killed parent leaves behind."""
        ray.kill(self.actor)
        if self.process is not None:
            there = NodeAffinitySchedulingStrategy(self.process.node_id, soft=False)
            end: Any = ray.remote(end_processes).options(num_cpus=0, scheduling_strategy=there)
            end.remote(self.process.processes)  # not waited for: the node may be gone

    def __str__(self) -> str:
        return f"{self.name} ({self.process})" if self.process else self.name


def is_gone(error: BaseException) -> bool:
    """Whether this error of an engine's call means that the engine will never serve again."""
    return isinstance(error, RayActorError | EngineGoneError)


def in_one_line(error: BaseException) -> str:
    """The error of a Ray call without the traceback that Ray puts before it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
