"""How many processes of each kind a run has, and how many it should have by what waits for what. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cluster.config.run_config import RunConfig

Bottleneck = Literal["engines", "dialogues", "learners", ""]
"""What the others wait for; empty where nobody waits much."""
LITTLE, MUCH = 0.1, 0.2
"""Idle shares. Below the first nobody waits, above the second it is worth another process."""
FULL = 0.75
"""Of an engine's places: above it, more dialogues would only queue there."""
UNUSED = 0.5
"""An engine that idles for so much of its time is one too many."""
USERS_SHARE = 0.5
"""Share of a turn that its user takes, above which the users get more replicas, too."""
PATIENCE_STEPS = 3
"""Steps in a row that must say the same: one slow group is no trend, and a change shows after some steps."""
GROWTH = 0.25
"""Part by which a number changes at a time; at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessCounts:
    """Numbers of processes."""

    rollouts: int
    engines: int
    simulators: int

    def __str__(self) -> str:
        return f"{self.rollouts} rollout actors, {self.engines} engines, {self.simulators} simulator replicas"

    def within(self, least: "ProcessCounts", most: "ProcessCounts") -> "ProcessCounts":
        """The nearest numbers between these."""
        return ProcessCounts(
            rollouts=min(max(self.rollouts, least.rollouts), most.rollouts),
            engines=min(max(self.engines, least.engines), most.engines),
            simulators=min(max(self.simulators, least.simulators), most.simulators),
        )


def least_sizes(config: RunConfig) -> ProcessCounts:
    """What the run begins with, and never goes below by itself."""
    return ProcessCounts(
        rollouts=config.rollout.num_actors,
        engines=config.engine.num_engines,
        simulators=config.simulator.num_replicas,
    )


def most_sizes(config: RunConfig) -> ProcessCounts:
    """What the run grows to by itself; the same as `least_sizes` where the recipe says nothing."""
    least = least_sizes(config)
    return ProcessCounts(
        rollouts=config.rollout.max_actors or least.rollouts,
        engines=config.engine.max_engines or least.engines,
        simulators=config.simulator.max_replicas or least.simulators,
    )


def find_bottleneck(metrics: Mapping[str, float], *, places: int, is_synchronous: bool) -> Bottleneck:
    """What a step's numbers say that the rest waits for, as docs/speed.md reads them. `places`: sequences
    that one engine computes at once.

    In synchronous training engines and learners take turns, so that an engine's time is the wait for groups
    only.
    """
    step_s = metrics["time/step_s"]
    engine_s = max(metrics["time/wait_s"] if is_synchronous else step_s, 1e-9)
    engine_idle = max(0.0, 1.0 - (1.0 - metrics["engine/idle/share"]) * step_s / engine_s)
    load = metrics["engine/requests/mean"] * step_s / engine_s / places
    waits = metrics["time/wait_s"] / max(step_s, 1e-9) if is_synchronous else metrics["learner/idle/share"]
    if waits > MUCH:
        return "engines" if engine_idle < LITTLE and load > FULL else "dialogues"
    return "learners" if waits < LITTLE and engine_idle > UNUSED else ""


class ScalingNeed:
    """Follows what limits a run, step by step, and says when its sizes should change."""

    def __init__(self, *, least: ProcessCounts, most: ProcessCounts, places: int, is_synchronous: bool):
        self._least, self._most = least, most
        self._recipe_least, self._recipe_most = least, most
        self._places = places
        self._is_synchronous = is_synchronous
        self._limit: Bottleneck = ""
        self._num_alike = 0

    def set_by_hand(self, sizes: ProcessCounts) -> None:
        """A person's numbers: the run does not go below them by itself, and grows from there where its recipe
        lets it grow."""

        def most(name: str) -> int:
            asked, allowed = getattr(sizes, name), getattr(self._recipe_most, name)
            return asked if allowed == getattr(self._recipe_least, name) else max(asked, allowed)

        self._least = sizes
        self._most = ProcessCounts(
            rollouts=most("rollouts"), engines=most("engines"), simulators=most("simulators")
        )
        self._num_alike = 0

    def note(self, metrics: Mapping[str, float], *, now: ProcessCounts) -> ProcessCounts:
        """The sizes to have after this step's numbers; NaN says nothing."""
        limit = find_bottleneck(metrics, places=self._places, is_synchronous=self._is_synchronous)
        self._num_alike = self._num_alike + 1 if limit == self._limit else 1
        self._limit = limit
        if not limit or self._num_alike < PATIENCE_STEPS:
            return now
        self._num_alike = 0
        users_are_slow = metrics.get("rollout/time/user/share", 0.0) > USERS_SHARE
        return changed(now, limit, users_are_slow=users_are_slow).within(self._least, self._most)


def changed(sizes: ProcessCounts, limit: Bottleneck, *, users_are_slow: bool) -> ProcessCounts:
    """More of what the others wait for, or less of what waits."""
    match limit:
        case "engines":
            return replace(sizes, engines=_more(sizes.engines))
        case "dialogues":
            simulators = _more(sizes.simulators) if users_are_slow else sizes.simulators
            return replace(sizes, rollouts=_more(sizes.rollouts), simulators=simulators)
        case "learners":
            return replace(sizes, rollouts=_fewer(sizes.rollouts), engines=_fewer(sizes.engines))
        case _:
            return sizes


def _more(number: int) -> int:
    return number + math.ceil(GROWTH * number)


def _fewer(number: int) -> int:
    return number - math.ceil(GROWTH * number)
