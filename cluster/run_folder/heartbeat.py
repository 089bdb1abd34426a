"""Heartbeat of a run's driver in the run folder: `status.json` with the current progress and `log.jsonl` with
every printed line.

A disk that refuses writes is reported once, and the run continues.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from cluster.console.eta import RunClock
from cluster.console.event_bus import AUDIENCE
from cluster.console.events import (
    Event,
    LogLine,
    RunProgress,
    StageProgress,
    StepFinished,
    WaitReason,
    first_line,
    to_json,
)
from cluster.console.output import ReaderGone
from cluster.console.progress import SETUP, join_run, warn
from cluster.run_folder.paths import RunFolder

DriverPhase = Literal["running", "finished", "stopped", "failed"]
WRITE_EVERY_S = 1.0
"""Least time between two writes of `status.json` about one stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverStatus:
    """What `status.json` says. Moments are seconds since 1970."""

    state: DriverPhase
    """`running` until the driver says otherwise: one that is killed says nothing."""
    pid: int
    host: str
    began_at: float
    """When this driver began."""
    at: float
    """When it last said anything."""
    step: int = 0
    num_steps: int = 0
    ends_at: float | None = None
    """When the run ends, as far as that can be told."""
    stage: str = ""
    """Set-up, SFT or an evaluation, where it is at one."""
    stage_done: int = 0
    stage_total: int = 0
    stage_ends_at: float | None = None
    waits: str = ""
    """What its step waits for; empty if it is not waiting."""
    waits_since: float = 0.0
    reason: str = ""
    """Why it failed."""
    setup_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each part of its set-up: what the next one is expected to take."""


def read_driver_status(path: Path) -> DriverStatus | None:
    """What was written last; None where nothing was, or by another version of the program."""
    try:
        return DriverStatus(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def recorded(folder: RunFolder, *, num_steps: int) -> Iterator[None]:
    """While it lasts, this process drives the run: what it tells is kept, and so is how it ends."""
    record = Heartbeat(folder, num_steps=num_steps)
    with AUDIENCE.joined_by(record), join_run(RunClock(num_steps=num_steps), setup_s=record.expected_s):
        step = folder.latest_step or 0
        AUDIENCE.tell(RunProgress(run=folder.path.resolve().name, step=step, num_steps=num_steps))
        try:
            yield
        except KeyboardInterrupt:
            record.end("stopped")
            raise
        except ReaderGone:  # of the results: the work is done
            record.end("finished")
            raise
        except BaseException as error:
            record.end("failed", reason=f"{type(error).__name__}: {first_line(error)}")
            raise
        record.end("finished")


class Heartbeat:
    """Listens to a run and writes it down."""

    def __init__(self, folder: RunFolder, *, num_steps: int):
        self._log, self._status = folder.log, folder.status
        now = time.time()
        self.expected_s = _last_setup_s(folder)
        self._pulse = DriverStatus(
            state="running",
            pid=os.getpid(),
            host=socket.gethostname(),
            began_at=now,
            at=now,
            num_steps=num_steps,
            setup_s=self.expected_s,
        )
        self._part = ""
        """Of the running set-up."""
        self._part_began_at = now
        self._written_at = 0.0
        self._is_refused = False
        """Whether the disk refused something, and it was said."""

    def hear(self, event: Event) -> None:
        match event:
            case LogLine():
                self._note(event)
            case RunProgress():
                self._note(event, step=event.step)
            case StepFinished():
                short = replace(event, metrics={})  # they stand in metrics.jsonl
                self._note(short, step=event.step, ends_at=_end(event.at, event.left_s), waits="")
            case WaitReason():
                goes_on = bool(event.text) and bool(self._pulse.waits)
                since = self._pulse.waits_since if goes_on else event.at
                self._write(event.at, stage="", waits=event.text, waits_since=since)
            case StageProgress():
                self._stage(event)

    def end(self, state: DriverPhase, *, reason: str = "") -> None:
        """The driver ends, and says how."""
        at = time.time()
        if reason:
            self._append(to_json(LogLine(text=reason, kind="failed", at=at)))
        self._write(at, state=state, reason=reason, stage="", waits="", ends_at=None)

    def _stage(self, stage: StageProgress) -> None:
        if stage.stage == SETUP:
            self._time_setup(stage)
        if stage.is_over:
            self._note(stage, stage="", stage_ends_at=None)
        elif stage.stage != self._pulse.stage or stage.at - self._written_at >= WRITE_EVERY_S:
            self._write(
                stage.at,
                stage=stage.stage,
                stage_done=stage.done,
                stage_total=stage.total,
                stage_ends_at=_end(stage.at, stage.left_s),
                waits="",
            )

    def _time_setup(self, stage: StageProgress) -> None:
        if self._part:
            seconds = round(stage.at - self._part_began_at, 3)
            self._pulse = replace(self._pulse, setup_s={**self._pulse.setup_s, self._part: seconds})
        self._part, self._part_began_at = "" if stage.is_over else stage.note, stage.at

    def _note(self, event: LogLine | RunProgress | StepFinished | StageProgress, **changes: object) -> None:
        """Into both files."""
        self._append(to_json(event))
        self._write(event.at, **changes)

    def _append(self, line: str) -> None:
        """In one write, so that lines of two threads never mix."""
        try:
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._refuse(error)

    def _write(self, at: float, **changes: object) -> None:
        """Whole or not at all, and not synced: after a crash of the machine an older one will do."""
        self._pulse = replace(self._pulse, at=at, **changes)  # type: ignore[arg-type]
        self._written_at = at
        partial = self._status.with_name(f".{self._status.name}.partial")
        try:
            partial.write_text(json.dumps(asdict(self._pulse)), encoding="utf-8")
            partial.replace(self._status)
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        if not self._is_refused:
            self._is_refused = True
            warn(f"{self._status.parent}: cannot be written ({error.strerror}): `userrl status` lags behind")


def _end(at: float, left_s: float | None) -> float | None:
    return None if left_s is None else at + left_s


def _last_setup_s(folder: RunFolder) -> dict[str, float]:
    """From this run's last set-up, or the newest one among its sibling runs."""
    beside = folder.path.resolve().parent.glob(f"*/{folder.status.name}")
    files = [folder.status, *sorted(beside, key=_changed_at, reverse=True)]
    known = (pulse.setup_s for pulse in map(read_driver_status, files) if pulse is not None)
    return dict(next((seconds for seconds in known if seconds), {}))


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
