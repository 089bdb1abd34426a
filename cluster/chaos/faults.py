"""Catalogue of chaos faults: which process each kind hits, when it may strike, and when the run counts as
recovered. Pure: kills nothing itself."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, get_args

FaultKind = Literal[
    "rollout", "engine", "core", "replica", "controller", "learner", "buffer", "driver", "node",
    "hung_rollout", "hung_engine", "hung_replica", "slow_node",
]  # fmt: skip
"""The process that a fault hits. `core` is vLLM's own process, `engine` the actor around it, `buffer` the
owner of all finished groups in the object store, `node` a worker node with everything on it. A hung one is
stopped, not killed. A slow one has a network that stutters: its raylet, through which all that other nodes
send to it or fetch from it goes, and its heartbeats, is stopped and let go in turn."""
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
CLASSES: Mapping[str, tuple[str, ...]] = {
    "rollout": ("RolloutActor",),
    "engine": ("EngineActor",),
    "replica": ("ServeReplica:",),
    "controller": ("ServeController",),
    "learner": ("GRPOLearner", "_WrappedExecutable"),  # as Ray Train wraps it
    "buffer": ("BufferActor",),
}
"""How the names of their actors' classes begin, as Ray knows them."""
LONGEST_CALM_S = 10.0
"""Seconds between a fault that is mended and the next one."""
STUTTER_S = 1.0
"""How long a slow node's network stands, and then works, in turn: less than Ray takes for a death."""
NUM_STUTTERS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One blow."""

    title: str
    """For people: `fault 12/200 learner`."""
    kind: FaultKind
    calm_s: float
    """Seconds to wait for it once the one before is mended."""
    pick: float
    """In [0, 1): selects one of the possible targets."""

    @property
    def role(self) -> str:
        """Kind of the target process: a key of `CLASSES`, `driver` or `node`."""
        return {"core": "engine", "slow_node": "node"}.get(self.kind, self.kind.removeprefix("hung_"))

    @property
    def is_hang(self) -> bool:
        return self.kind.startswith("hung_")


def has_role(class_name: str, role: str) -> bool:
    """Whether an actor is of this role. A class that a function has made is known by the function, too:
    `make.<locals>.Class`."""
    return class_name.rpartition("<locals>.")[2].startswith(CLASSES[role])


def schedule(num_faults: int, *, seed: int, kinds: Sequence[FaultKind] = KINDS) -> list[Fault]:
    """Random moments, in an order in which every kind has come before any comes again."""
    rng = random.Random(seed)

    def shuffled() -> Iterator[FaultKind]:
        while True:
            yield from rng.sample(list(kinds), k=len(kinds))

    return [
        Fault(
            title=f"fault {number}/{num_faults} {kind}",
            kind=kind,
            calm_s=rng.uniform(0.0, LONGEST_CALM_S),
            pick=rng.random(),
        )
        for number, kind in zip(range(1, num_faults + 1), shuffled(), strict=False)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What is seen of a run from outside."""

    alive: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Processes by role."""
    log: str = ""
    """What the driver has told people so far, all its lives together."""

    def num_lines(self, pattern: str) -> int:
        return len(re.findall(pattern, self.log, re.MULTILINE))

    @property
    def last_step(self) -> str:
        """Of GRPO, as the driver told it: `step 12/60`; empty before the first."""
        steps = re.findall(STEP, self.log, re.MULTILINE)
        return steps[-1] if steps else ""


SERVES = r"^engine \d+ .*serves"
REBUILT = r"^new learners resumed"
UP = r"^simulators, .* are up"
STEP = r"^step \d+/\d+"
OWNED = ("rollout", "engine", "learner", "buffer")
"""Roles whose processes end with the driver, and which the driver ends with the buffer. Ray may count those
that it lost for some seconds more."""


def is_mended(role: str, *, victims: frozenset[int], before: Snapshot, now: Snapshot) -> bool:
    """Whether the run is again what it was before these processes were struck: as many of the kind live,
    other ones, and they are at work as far as the driver says so."""
    roles = {role}
    if role in ("driver", "node"):
        roles |= now.alive.keys() | before.alive.keys()
    if role in ("driver", "buffer"):
        roles |= set(OWNED)
        victims = victims.union(*(before.alive.get(one, ()) for one in OWNED))
    for one in roles:
        if len(now.alive.get(one, frozenset()) - victims) < len(before.alive.get(one, ())):
            return False
    news = {"engine": (SERVES, UP), "learner": (REBUILT, UP), "driver": (UP,), "buffer": (UP,)}.get(role)
    return not news or any(now.num_lines(pattern) > before.num_lines(pattern) for pattern in news)


def summary(recoveries: Sequence[tuple[FaultKind, float]]) -> dict[str, object]:
    """`kills`, `by_kind` and `recovery_s` as `userrl chaos --json` prints them; null where nothing was
    struck."""
    kinds = [kind for kind, _ in recoveries]
    return {
        "kills": len(kinds),
        "by_kind": {kind: kinds.count(kind) for kind in KINDS if kind in kinds},
        "recovery_s": _median_and_max([seconds for _, seconds in recoveries]),
    }


def summary_by_kind(
    recoveries: Sequence[tuple[FaultKind, float]],
) -> dict[FaultKind, dict[str, float | None]]:
    """Seconds until faults of each kind that struck were mended: `p50` and `max`."""
    return {
        kind: _median_and_max([seconds for one, seconds in recoveries if one == kind])
        for kind in KINDS
        if any(one == kind for one, _ in recoveries)
    }


def _median_and_max(seconds: Sequence[float]) -> dict[str, float | None]:
    return {"p50": median(seconds) if seconds else None, "max": max(seconds, default=None)}
