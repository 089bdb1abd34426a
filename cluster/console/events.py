"""Structured log messages of a command (run, step, stage, wait) and the JSON form of every message.

A message of the `userrl` logger is a text or one of these records; `str` of a record is its line for people.
Every command loads this file: it imports nothing heavy.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.console.eta import short_time

KINDS = {
    logging.INFO: "line",
    logging.WARNING: "trouble",
    logging.ERROR: "refused",
    logging.CRITICAL: "failed",
}
"""`event` of a text in JSON, by its level. `trouble`: a fault and what was done about it; `refused`: input
that cannot run; `failed`: why a command ended."""
IMPORTANT = ("trouble", "refused", "failed")
"""Kinds that a quiet command shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """A run starts, or resumes after `step`."""

    run: str
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFinished:
    """A GRPO step has ended."""

    step: int
    num_steps: int
    text: str
    """The line for people."""
    left_s: float | None
    """Until the end of the run; None while unknown."""
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class StageProgress:
    """Progress of a stage: set-up, demonstrations, SFT, an evaluation."""

    stage: str
    done: int
    total: int
    note: str
    """The current part, or the latest number."""
    elapsed_s: float
    left_s: float | None
    is_over: bool = False
    """Whether the stage has ended, completely or early."""

    def __str__(self) -> str:
        """Example: `evaluate sft 60/600 | 12.3s | 1m 50s left | score 0.31`."""
        left = "" if self.left_s is None or self.done >= self.total else f"{short_time(self.left_s)} left"
        parts = (f"{self.stage} {self.done}/{self.total}", f"{self.elapsed_s:.1f}s", left, self.note)
        return " | ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitReason:
    """What the current step waits for; empty if it does not wait."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayedLine:
    """A JSON line that another process has logged."""

    line: str


Event = RunProgress | StepFinished | StageProgress | WaitReason | RelayedLine
JSON_NAMES = {RunProgress: "run", StepFinished: "step", StageProgress: "stage", WaitReason: "waits"}
"""`event` of each record in JSON."""


def to_json(message: str | Event, *, at: float, level: int = logging.INFO) -> str:
    """One line of JSON: `time`, `event`, then the record's own fields; a number that is not finite is null.

    Example: `{"time": 1764.5, "event": "trouble", "text": "engine 1 is lost: ..."}`.
    """
    if isinstance(message, RelayedLine):
        return message.line
    if isinstance(message, str):
        kind, own = KINDS[level], {"text": message}
    else:
        kind, own = JSON_NAMES[type(message)], asdict(message)
    return json.dumps({"time": round(at, 3), "event": kind, **finite(own)}, ensure_ascii=False)


def finite(value: Any) -> Any:
    """A copy of nested mappings, lists and numbers in which every number that is not finite is None."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_line(error: BaseException) -> str:
    """First line of an error's text; empty if it has none."""
    return (str(error).strip().splitlines() or [""])[0]


def describe_error(error: BaseException) -> str:
    """Type and first line of an error. Example: `RuntimeError: engine died`."""
    return f"{type(error).__name__}: {first_line(error)}"


def printable(text: str) -> str:
    """The text with a space for every control character: models and servers write some of it, and it must not
    steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
