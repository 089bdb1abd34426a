"""Heartbeat of a run's driver in the run folder: `status.json` with the current progress and `log.jsonl` with
every logged line.

A failed write is reported once, and the run continues.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from cluster.console.eta import RunClock
from cluster.console.events import (
    Event,
    RunProgress,
    StageProgress,
    StepFinished,
    WaitReason,
    describe_error,
    to_json,
)
from cluster.console.log import LOG, LogHandler, logged_to, warn
from cluster.console.output import ReaderGone
from cluster.console.progress import SETUP, estimated_by
from cluster.run_folder.paths import RunFolder

DriverPhase = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverStatus:
    """Content of `status.json`. Times are seconds since 1970."""

    state: DriverPhase
    """Stays `running` if the driver is killed."""
    pid: int
    host: str
    began_at: float
    """Start of this driver."""
    at: float
    """Time of the last update."""
    step: int = 0
    num_steps: int = 0
    ends_at: float | None = None
    """Estimated end of the run; None while unknown."""
    stage: str = ""
    """Set-up, SFT or an evaluation while it runs; else empty."""
    stage_done: int = 0
    stage_total: int = 0
    stage_ends_at: float | None = None
    waits: str = ""
    """What its step waits for; empty if it does not wait."""
    waits_since: float = 0.0
    reason: str = ""
    """Why it failed."""
    setup_s: Mapping[str, float] = field(default_factory=dict)
    """Measured seconds of each part of its set-up: the estimate for the next one."""


def read_driver_status(path: Path) -> DriverStatus | None:
    """The last status; None if there is none, or one of another version of the program."""
    try:
        return DriverStatus(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def recorded(folder: RunFolder, *, num_steps: int) -> Iterator[None]:
    """Inside the block this process drives the run: its log and how it ends are written to the run folder."""
    heartbeat = Heartbeat(folder, num_steps=num_steps)
    clock = RunClock(num_steps=num_steps)
    with logged_to(heartbeat), estimated_by(clock, setup_s=heartbeat.expected_s):
        step = folder.latest_step or 0
        LOG.debug(RunProgress(run=folder.path.resolve().name, step=step, num_steps=num_steps))
        try:
            yield
        except KeyboardInterrupt:
            heartbeat.end("stopped")
            raise
        except ReaderGone:  # while results were printed: the work is done
            heartbeat.end("finished")
            raise
        except BaseException as error:
            heartbeat.end("failed", reason=describe_error(error))
            raise
        heartbeat.end("finished")


class Heartbeat(LogHandler):
    """Log handler that keeps `status.json` and `log.jsonl` of a run."""

    def __init__(self, folder: RunFolder, *, num_steps: int):
        super().__init__(logging.DEBUG)
        self._log, self._status_file = folder.log, folder.status
        now = time.time()
        self.expected_s = _last_setup_s(folder)
        self._status = DriverStatus(
            state="running",
            pid=os.getpid(),
            host=socket.gethostname(),
            began_at=now,
            at=now,
            num_steps=num_steps,
            setup_s=self.expected_s,
        )
        self._part = ""
        """Current part of the set-up."""
        self._part_began_at = now
        self._has_warned = False
        """Whether a failed write was reported."""

    def emit(self, record: logging.LogRecord) -> None:
        at = record.created
        match record.msg:
            case StageProgress() as stage:
                self._update_stage(stage, at=at)
            case WaitReason(text=text):
                is_same_wait = bool(text) and bool(self._status.waits)
                since = self._status.waits_since if is_same_wait else at
                self._write(at, stage="", waits=text, waits_since=since)
            case StepFinished() as step:
                self._append(replace(step, metrics={}), at=at)  # metrics.jsonl has them
                self._write(at, step=step.step, ends_at=_end(at, step.left_s), waits="")
            case RunProgress() as run:
                self._append(run, at=at)
                self._write(at, step=run.step)
            case message:
                self._append(message, at=at, level=record.levelno)
                self._write(at)

    def end(self, state: DriverPhase, *, reason: str = "") -> None:
        """Writes how the driver ended."""
        at = time.time()
        if reason:
            self._append(reason, at=at, level=logging.CRITICAL)
        self._write(at, state=state, reason=reason, stage="", waits="", ends_at=None)

    def _update_stage(self, stage: StageProgress, *, at: float) -> None:
        if stage.stage == SETUP:
            self._time_setup(stage, at=at)
        if stage.is_over:
            self._append(stage, at=at)
            self._write(at, stage="", stage_ends_at=None)
        else:
            self._write(
                at,
                stage=stage.stage,
                stage_done=stage.done,
                stage_total=stage.total,
                stage_ends_at=_end(at, stage.left_s),
                waits="",
            )

    def _time_setup(self, stage: StageProgress, *, at: float) -> None:
        if self._part:
            seconds = round(at - self._part_began_at, 3)
            self._status = replace(self._status, setup_s={**self._status.setup_s, self._part: seconds})
        self._part, self._part_began_at = "" if stage.is_over else stage.note, at

    def _append(self, message: str | Event, *, at: float, level: int = logging.INFO) -> None:
        """In one write, so that lines of two threads never mix."""
        try:
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, f"{to_json(message, at=at, level=level)}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._warn_once(error)

    def _write(self, at: float, **changes: object) -> None:
        """Atomic but not synced: after a crash of the machine an older status is good enough."""
        self._status = replace(self._status, at=at, **changes)  # type: ignore[arg-type]
        partial = self._status_file.with_name(f".{self._status_file.name}.partial")
        try:
            partial.write_text(json.dumps(asdict(self._status)), encoding="utf-8")
            partial.replace(self._status_file)
        except OSError as error:
            self._warn_once(error)

    def _warn_once(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            folder = self._status_file.parent
            warn(f"{folder}: cannot be written ({error.strerror}): `userrl status` is out of date")


def _end(at: float, left_s: float | None) -> float | None:
    return None if left_s is None else at + left_s


def _last_setup_s(folder: RunFolder) -> dict[str, float]:
    """Of this run's last set-up, or the newest one among its sibling runs."""
    siblings = folder.path.resolve().parent.glob(f"*/{folder.status.name}")
    files = [folder.status, *sorted(siblings, key=_changed_at, reverse=True)]
    known = (status.setup_s for status in map(read_driver_status, files) if status is not None)
    return dict(next((seconds for seconds in known if seconds), {}))


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
