"""A running job's sizes: changed by a person, through a file in its run folder, or by measured need.

A file, since the command may come from any process that sees the run folder, needs no address and no key, and
what was asked for outlives a driver that dies: a run that goes on has the sizes it had.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.progress import say
from cluster.run_folder.paths import RunFolder, write_whole
from cluster.workers.scaling_rules import ProcessCounts, ScalingNeed, least_sizes, most_sizes

ANSWER_TIMEOUT_S = 60.0
"""How long `userrl scale` waits for the driver, which looks between two steps."""
LOOK_EVERY_S = 0.2
MOST = 100_000
"""Of any kind: a number above it is a slip of the finger."""


def ask_for_sizes(
    folder: RunFolder, *, wanted: Mapping[str, int], timeout_s: float = ANSWER_TIMEOUT_S
) -> str:
    """Has the run's driver change these numbers; its answer, in one line. Raises `BadInput` where nothing is
    asked for, a number makes no sense, or no driver runs."""
    if not wanted:
        raise BadInput("nothing to change: give --rollouts N, --engines N or --simulators N")
    for name, number in wanted.items():
        if not 1 <= number <= MOST:
            raise BadInput(f"--{name} {number}: a run has at least one of each: give 1 to {MOST}")
    if not folder.is_running:
        raise BadInput(
            f"{folder.path}: no driver runs there: start it with `userrl train {folder.path}`; sizes that it "
            "begins with are rollout.num_actors, engine.num_engines and simulator.num_replicas"
        )
    request = uuid.uuid4().hex
    # What was asked for before still holds: a driver that goes on reads one file.
    write_whole(folder.scale, json.dumps({**_read(folder.scale), **wanted, "request": request}))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = _read(folder.scale_answer)
        if answer.get("request") == request:
            return str(answer["line"])
        time.sleep(LOOK_EVERY_S)
    return f"{folder.path}: asked for; the driver is busy and changes its sizes when its step is over"


class Autoscaler:
    """The driver's side."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, *, set_sizes: Mapping[str, Callable[[int], object]]
    ):
        """`set_sizes` has a function for `rollouts`, `engines` and `simulators`; it returns at once, and
        raises `ValueError` where the number cannot be."""
        self.now = least_sizes(config)
        self._folder = folder
        self._set_sizes = set_sizes
        self._answered = ""
        self._need = ScalingNeed(
            least=self.now,
            most=most_sizes(config),
            places=config.engine.max_num_seqs,
            is_synchronous=config.buffer.max_off_policy_steps == 0,
        )

    def look(self) -> None:
        """Does what a person has asked for, and answers. Cheap where nobody has."""
        asked = _read(self._folder.scale)
        request = str(asked.pop("request", ""))
        if not request or request == self._answered:
            return
        before, self._answered = self.now, request
        try:
            self._change(
                ProcessCounts(**{name: int(asked.get(name, getattr(before, name))) for name in self._names})
            )
            self._need.set_by_hand(self.now)
            line = f"{self._folder.path.name}: {self.now} (before: {before})"
        except (TypeError, ValueError) as error:
            line = f"{self._folder.path.name}: nothing changed: {error}"
        write_whole(self._folder.scale_answer, json.dumps({"request": request, "line": line}))
        say(f"scale: {line}")

    def note(self, metrics: Mapping[str, float], *, is_settled: bool) -> None:
        """Changes sizes by what a step's numbers say, once the last change has arrived."""
        wanted = self._need.note(metrics, now=self.now)
        if wanted == self.now or not is_settled:
            return
        before = self.now
        try:
            self._change(wanted)
        except ValueError as error:
            say(f"scale: nothing changed: {error}")
        else:
            say(f"scale: {self.now}, by need (before: {before})")

    @property
    def _names(self) -> list[str]:
        return list(self._set_sizes)

    def _change(self, wanted: ProcessCounts) -> None:
        for name, set_size in self._set_sizes.items():
            if getattr(wanted, name) != getattr(self.now, name):
                set_size(getattr(wanted, name))
        self.now = wanted


def _read(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none, or somebody else's."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
