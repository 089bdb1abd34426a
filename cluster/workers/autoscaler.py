"""Elastic sizes of a run: how many rollout actors, engines and simulator replicas it has, changed by a user
through `userrl scale` or by the measured bottleneck.

`userrl scale` writes a file into the run folder: it works from any process that sees the folder, needs no
address and no key, and a resumed run keeps the sizes that were asked for."""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.run_folder.atomic_files import write_whole
from cluster.run_folder.paths import RunFolder

ANSWER_TIMEOUT_S = 60.0
"""How long `userrl scale` waits for the driver, which polls between two steps and while it waits for
groups."""
POLL_EVERY_S = 0.2
MAX_PROCESSES = 100_000
"""Of one kind: an upper bound that catches typos."""

Bottleneck = Literal["engines", "dialogues", "learners", ""]
"""What the other processes wait for; empty if none waits much."""
LOW_IDLE, HIGH_IDLE = 0.1, 0.2
"""Idle shares. Below the first there is no wait to speak of; above the second another process pays off."""
FULL_SHARE = 0.75
"""Of an engine's slots: above it, more dialogues would only queue there."""
UNUSED_SHARE = 0.5
"""An engine that idles for more of its time is one too many."""
USERS_SHARE = 0.5
"""Share of a turn that its user takes, above which the simulators get more replicas, too."""
PATIENCE_STEPS = 3
"""Consecutive steps with the same bottleneck before a change: one slow group is no trend, and a change takes
some steps to show."""
GROWTH = 0.25
"""Fraction by which a number changes at a time; at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessCounts:
    """Numbers of processes."""

    rollouts: int
    engines: int
    simulators: int

    def __str__(self) -> str:
        return f"{self.rollouts} rollout actors, {self.engines} engines, {self.simulators} simulator replicas"

    def clamp(self, low: "ProcessCounts", high: "ProcessCounts") -> "ProcessCounts":
        """The nearest numbers between these."""
        return ProcessCounts(
            **{
                name: min(max(number, getattr(low, name)), getattr(high, name))
                for name, number in asdict(self).items()
            }
        )


KINDS = [field.name for field in fields(ProcessCounts)]


def initial_counts(config: RunConfig) -> ProcessCounts:
    """What the run starts with; the autoscaler never goes below."""
    return ProcessCounts(
        rollouts=config.rollout.num_actors,
        engines=config.engine.num_engines,
        simulators=config.simulator.num_replicas,
    )


def max_counts(config: RunConfig) -> ProcessCounts:
    """What the autoscaler grows to at most; the initial counts if the recipe sets no limits."""
    initial = initial_counts(config)
    return ProcessCounts(
        rollouts=config.rollout.max_actors or initial.rollouts,
        engines=config.engine.max_engines or initial.engines,
        simulators=config.simulator.max_replicas or initial.simulators,
    )


def find_bottleneck(metrics: Mapping[str, float], *, places: int, is_synchronous: bool) -> Bottleneck:
    """What a step's metrics say that the rest waits for, as docs/speed.md reads them. `places`: sequences
    that one engine computes at once.

    In synchronous training engines and learners take turns, so that an engine's time is the wait for groups
    only."""
    step_s = metrics["time/step_s"]
    engine_s = max(metrics["time/wait_s"] if is_synchronous else step_s, 1e-9)
    engine_idle = max(0.0, 1.0 - (1.0 - metrics["engine/idle/share"]) * step_s / engine_s)
    load = metrics["engine/requests/mean"] * step_s / engine_s / places
    waits = metrics["time/wait_s"] / max(step_s, 1e-9) if is_synchronous else metrics["learner/idle/share"]
    if waits > HIGH_IDLE:
        return "engines" if engine_idle < LOW_IDLE and load > FULL_SHARE else "dialogues"
    return "learners" if waits < LOW_IDLE and engine_idle > UNUSED_SHARE else ""


class ScalingPolicy:
    """Follows the bottleneck of a run, step by step, and decides when its counts should change. Pure."""

    def __init__(self, *, low: ProcessCounts, high: ProcessCounts, places: int, is_synchronous: bool):
        self._low, self._high = low, high
        self._recipe_low, self._recipe_high = low, high
        self._places = places
        self._is_synchronous = is_synchronous
        self._bottleneck: Bottleneck = ""
        self._num_alike = 0

    def set_by_user(self, counts: ProcessCounts) -> None:
        """A user's numbers are the new lower limit, and the upper one of kinds whose recipe allows no
        growth."""

        def high(name: str) -> int:
            asked, allowed = getattr(counts, name), getattr(self._recipe_high, name)
            return asked if allowed == getattr(self._recipe_low, name) else max(asked, allowed)

        self._low, self._high = counts, ProcessCounts(**{name: high(name) for name in KINDS})
        self._num_alike = 0

    def wanted(self, metrics: Mapping[str, float], *, now: ProcessCounts) -> ProcessCounts:
        """The counts to have after a step with these metrics; NaN changes nothing."""
        bottleneck = find_bottleneck(metrics, places=self._places, is_synchronous=self._is_synchronous)
        self._num_alike = self._num_alike + 1 if bottleneck == self._bottleneck else 1
        self._bottleneck = bottleneck
        if not bottleneck or self._num_alike < PATIENCE_STEPS:
            return now
        self._num_alike = 0
        users_are_slow = metrics.get("rollout/time/user/share", 0.0) > USERS_SHARE
        return changed(now, bottleneck, users_are_slow=users_are_slow).clamp(self._low, self._high)


def changed(counts: ProcessCounts, bottleneck: Bottleneck, *, users_are_slow: bool) -> ProcessCounts:
    """More of what the others wait for, or less of what waits."""

    def step(number: int) -> int:
        return math.ceil(GROWTH * number)

    match bottleneck:
        case "engines":
            return replace(counts, engines=counts.engines + step(counts.engines))
        case "dialogues":
            more_users = step(counts.simulators) if users_are_slow else 0
            return replace(
                counts,
                rollouts=counts.rollouts + step(counts.rollouts),
                simulators=counts.simulators + more_users,
            )
        case "learners":
            return replace(
                counts,
                rollouts=counts.rollouts - step(counts.rollouts),
                engines=counts.engines - step(counts.engines),
            )
        case _:
            return counts


def request_counts(
    folder: RunFolder, *, wanted: Mapping[str, int], timeout_s: float = ANSWER_TIMEOUT_S
) -> str:
    """Asks the run's driver to change these numbers: returns its one-line answer. Raises `BadInput` if
    nothing is asked for, a number is out of range, or no driver runs."""
    if not wanted:
        raise BadInput("nothing to change: give --rollouts N, --engines N or --simulators N")
    for name, number in wanted.items():
        if not 1 <= number <= MAX_PROCESSES:
            raise BadInput(f"--{name} {number}: a run has at least one of each: give 1 to {MAX_PROCESSES}")
    if not folder.is_running:
        raise BadInput(
            f"{folder.path}: no driver runs there: start it with `userrl train {folder.path}`; the initial "
            "sizes are rollout.num_actors, engine.num_engines and simulator.num_replicas"
        )
    request = uuid.uuid4().hex
    # Earlier requests still hold, and a resumed driver reads one file.
    write_whole(folder.scale, json.dumps({**_read(folder.scale), **wanted, "request": request}))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = _read(folder.scale_answer)
        if answer.get("request") == request:
            return str(answer["line"])
        time.sleep(POLL_EVERY_S)
    return f"{folder.path}: requested; the driver is busy and changes its sizes after the current step"


class Autoscaler:
    """The driver's side: carries out requests and the scaling policy."""

    def __init__(self, config: RunConfig, folder: RunFolder, *, scale: Mapping[str, Callable[[int], object]]):
        """`scale` has a function for `rollouts`, `engines` and `simulators`; it returns at once, and raises
        `ValueError` if it cannot change the number."""
        self.counts = initial_counts(config)
        self._folder = folder
        self._scale = scale
        self._answered = ""
        self._policy = ScalingPolicy(
            low=self.counts,
            high=max_counts(config),
            places=config.engine.max_num_seqs,
            is_synchronous=config.buffer.max_off_policy_steps == 0,
        )

    def poll(self) -> None:
        """Carries out and answers a user's request; cheap if there is none."""
        asked = _read(self._folder.scale)
        request = str(asked.pop("request", ""))
        if not request or request == self._answered:
            return
        before, self._answered = self.counts, request
        try:
            self._change(
                ProcessCounts(**{kind: int(asked.get(kind, getattr(before, kind))) for kind in KINDS})
            )
            self._policy.set_by_user(self.counts)
            line = f"{self._folder.path.name}: {self.counts} (before: {before})"
        except (TypeError, ValueError) as error:
            line = f"{self._folder.path.name}: nothing changed: {error}"
        write_whole(self._folder.scale_answer, json.dumps({"request": request, "line": line}))
        info(f"scale: {line}")

    def adapt(self, metrics: Mapping[str, float], *, is_stable: bool) -> None:
        """Changes the counts by what a step's metrics say, once the last change has taken effect."""
        wanted = self._policy.wanted(metrics, now=self.counts)
        if wanted == self.counts or not is_stable:
            return
        before = self.counts
        try:
            self._change(wanted)
        except ValueError as error:
            info(f"scale: nothing changed: {error}")
        else:
            info(f"scale: {self.counts}, by measured need (before: {before})")

    def _change(self, wanted: ProcessCounts) -> None:
        for kind, set_number in self._scale.items():
            if getattr(wanted, kind) != getattr(self.counts, kind):
                set_number(getattr(wanted, kind))
        self.counts = wanted


def _read(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
