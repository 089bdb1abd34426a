"""Tail readers of a run's growing files for `userrl status`: never parses a whole file.

A file may be written while it is read: an incomplete last line is left out.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.console.events import IMPORTANT

END_BYTES = 2**18
"""Of a file's end: some dozen steps, or a thousand lines of a log."""
NUM_LINES = 11
"""Steps at the end that rates are taken of, and the one before them."""
REWARD = re.compile(
    rb'^\{"step": (\d+),[^\n]*?"rollout/reward/mean": (-?[0-9.]+(?:[eE][-+]?\d+)?)[,}][^\n]*\n', re.M
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedProblem:
    """A line of the log that was no good news."""

    age_s: float
    text: str


def last_lines(path: Path, *, number: int = NUM_LINES) -> list[dict[str, Any]]:
    """The last whole lines of a file of JSON objects, oldest first; none where there is no file."""
    return [line for line in map(_object, _end(path).splitlines()[-number:]) if line is not None]


def last_troubles(path: Path, *, number: int, now: float) -> list[LoggedProblem]:
    """The last troubles and failures of a run's log, oldest first."""
    lines = (_object(line) for line in _end(path).splitlines())
    bad = [line for line in lines if line and line.get("event") in IMPORTANT]
    return [
        LoggedProblem(age_s=max(0.0, now - float(line["time"])), text=str(line["text"]))
        for line in bad[-number:]
    ]


def best_step(path: Path) -> tuple[int, float] | None:
    """The step with the highest mean reward, the first of several, and that reward."""
    try:
        found = REWARD.findall(path.read_bytes())
    except OSError:
        return None
    steps = [(int(step), float(reward)) for step, reward in found]
    return max(steps, key=lambda one: (one[1], -one[0]), default=None)


def num_bytes(folder: Path) -> int:
    """Of the files in it; 0 where there is none."""
    sizes = 0
    for path in folder.glob("*"):
        try:
            sizes += path.stat().st_size
        except OSError:  # deleted meanwhile
            continue
    return sizes


def _end(path: Path) -> bytes:
    """Whole lines at the end of a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - END_BYTES))
            text = file.read()
    except OSError:
        return b""
    if size > END_BYTES:
        text = text.partition(b"\n")[2]
    return text[: text.rfind(b"\n") + 1]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        read = json.loads(line)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def read_recipe(path: Path) -> dict[str, Any]:
    """A run's resolved recipe as raw keys, independent of the program's version."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def recipe_value(table: Mapping[str, Any], key: str) -> Any:
    """Of a key such as `grpo.num_steps`; None where the recipe lacks it."""
    section, _, name = key.partition(".")
    return table.get(section, {}).get(name)


def asked_sizes(path: Path) -> dict[str, int]:
    """What `userrl scale` asked for last."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return {name: int(number) for name, number in read.items() if name != "request"}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def average_scores(path: Path) -> dict[str, float | None]:
    """Averages over gyms, by stage, of `evaluation.json`."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {row["stage"]: row["score"] for row in rows if row["gym"] == "average"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
