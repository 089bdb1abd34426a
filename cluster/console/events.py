"""Event types of a command's output (line, stage, step, wait) and their JSON form.

Each event is created once, then shown by any screen and stored in the run folder. Light: every command loads
it.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from cluster.console.eta import short_time

IMPORTANT = ("trouble", "refused", "failed")
"""Kinds that a quiet command tells."""
LineKind = Literal["line", "trouble", "refused", "failed"]
"""`trouble` is what went wrong and was seen to; `refused` what a person wrote that cannot run; `failed` why a
command ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """A line for people."""

    text: str
    kind: LineKind = "line"
    at: float = field(default_factory=time.time)
    """Seconds since 1970, here and below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """A run starts, or resumes after `step`."""

    run: str
    step: int
    num_steps: int
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFinished:
    """A GRPO step is over."""

    step: int
    num_steps: int
    text: str
    """The line for people."""
    left_s: float | None
    """Until the end of the run; None while unknown."""
    metrics: Mapping[str, float]
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageProgress:
    """How far a stage is: set-up, demonstrations, SFT, an evaluation."""

    stage: str
    done: int
    total: int
    note: str
    """What it is at, or its newest number."""
    elapsed_s: float
    left_s: float | None
    is_over: bool = False
    """Whether it is left, at its end or before."""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitReason:
    """What a step waits for; empty if it is not waiting."""

    text: str
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayedLine:
    """What another process told, as its line of JSON."""

    line: str
    kind: str
    """Its `event`."""


Event = LogLine | RunProgress | StepFinished | StageProgress | WaitReason | RelayedLine
JSON_NAMES = {RunProgress: "run", StepFinished: "step", StageProgress: "stage", WaitReason: "waits"}
"""The `event` of each type in JSON; a `LogLine` has its `kind` there."""


class Listener(Protocol):
    """Receiver of events."""

    def hear(self, event: Event) -> None: ...


def to_json(event: Event) -> str:
    """One line of JSON: `time`, `event`, then the event's own fields; what is not finite is null.

    Example: `{"time": 1764.5, "event": "trouble", "text": "engine 1 is lost: ..."}`.
    """
    if isinstance(event, RelayedLine):
        return event.line
    kind = event.kind if isinstance(event, LogLine) else JSON_NAMES[type(event)]
    own = {one.name: getattr(event, one.name) for one in fields(event) if one.name not in ("at", "kind")}
    return json.dumps({"time": round(event.at, 3), "event": kind, **finite(own)}, ensure_ascii=False)


def finite(value: Any) -> Any:
    """The same of tables, lists and numbers, as JSON takes it: what is not finite is None."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_line(error: BaseException) -> str:
    """Of what an error says; empty where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def printable(text: str) -> str:
    """One line without what would steer a terminal: some of it was said by models and servers."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def stage_line(stage: StageProgress) -> str:
    """A stage for people.

    Example: `evaluate sft 60/600 | 12.3s | 1m 50s left | score 0.31`.
    """
    is_done = stage.done >= stage.total
    left = None if stage.left_s is None or is_done else f"{short_time(stage.left_s)} left"
    note = None if stage.note == "" else printable(stage.note)
    parts = [f"{stage.stage} {stage.done}/{stage.total}", f"{stage.elapsed_s:.1f}s", left, note]
    return " | ".join(part for part in parts if part is not None)
