"""W&B run fed by one background thread that reads entries from disk, so that a slow, unreachable or broken
W&B never slows or stops training. docs/wandb.md says what happens to unsent entries."""

import os
import queue
import secrets
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cluster.config.run_config import RunConfig
from cluster.console.events import first_line
from cluster.console.log import warn
from cluster.run_folder.paths import RunFolder
from cluster.tracking.alerts import Alert
from cluster.tracking.wandb.artifacts import ArtifactLineage
from cluster.tracking.wandb.history import (
    SECTIONS,
    SFT_STEP,
    STEP,
    WandbHistory,
    axis_of,
    better_than,
    follow,
    read_entries,
)
from cluster.tracking.wandb.internals import (
    kill_service,
    mark_synced,
    num_rows,
    parts_of,
    publish,
    resolve_mode,
)
from cluster.tracking.wandb.media import MediaBuilder

OwnMode = Literal["online", "offline"]
OWN_DATA_DIR = os.environ.get("WANDB_DATA_DIR")
"""The user's own staging folder for artifacts, instead of the run folder."""
QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
"""Turns off W&B's own output and its error reports, which would wait for a service that is down."""
INIT_TIMEOUT_S = 20.0
"""Timeout of the connection; after it the run is recorded offline."""
FINISH_TIMEOUT_S = 30.0
"""Timeout at the end for unsent entries."""
CLOSE_TIMEOUT_S = 45.0
"""Total timeout; after it W&B's service process is killed. Received entries are in its file by then."""
RESTART_TIMEOUT_S = 5.0
"""Timeout if the run restarts at once: the next tracker sends what is left."""
FLUSH_INTERVAL_S = 1.0
"""Interval between writes of W&B's file: what a kill -9 may lose until the run resumes."""
POLL_INTERVAL_S = 1.0
ALERT_WAIT_S = 1800.0
"""Minimum seconds between two alerts of one title."""


class WandbRun:
    """The W&B run of a run folder; a resumed run continues it."""

    def __init__(self, folder: RunFolder, *, config: RunConfig, history: WandbHistory, group: str = ""):
        """Sends `history` as it grows. `group` is the W&B group of a sweep's runs."""
        self._folder = folder
        self._config = config
        self._history = history
        self._group = group
        self._warned = False
        self._alerts: queue.SimpleQueue[Alert] = queue.SimpleQueue()
        self._wakeup, self._closing = threading.Event(), threading.Event()
        self._is_last_poll = False
        self._first = 0
        """Number of the first row that W&B lacks."""
        self._failed = self._restarts = self._is_given_up = False
        self.mode = resolve_mode(config.tracking.mode)
        """online, offline or disabled."""
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self.mode != "disabled":
            self._thread.start()

    def wake(self) -> None:
        """Signals new entries in the history. Returns at once."""
        self._wakeup.set()

    def alert(self, alert: Alert) -> None:
        """Queues an alert for the thread; returns at once."""
        self._alerts.put(alert)
        self._wakeup.set()

    def close(self, *, failed: bool = False, restarts: bool = False) -> None:
        """Waits a limited time for W&B to write its entries; only shortly if the same run `restarts` at
        once."""
        limit_s = RESTART_TIMEOUT_S if restarts else CLOSE_TIMEOUT_S
        self._failed, self._restarts = failed, restarts
        self._closing.set()
        self._wakeup.set()
        if self.mode != "disabled":
            self._thread.join(timeout=limit_s)
        if self._thread.is_alive():
            if not restarts:
                self._warn(f"it did not finish within {limit_s:g} s")
            self._is_given_up = True
            kill_service()
            self._thread.join(timeout=POLL_INTERVAL_S)

    def _warn(self, reason: str) -> None:
        if not self._warned and not self._is_given_up:
            self._warned = True
            warn(f"W&B: {reason}; the run continues, docs/wandb.md explains how to send the rest")

    def _work(self) -> None:
        """Consumes the history, waits for W&B, produces its files. An error of W&B ends this thread, not the
        run."""
        run = self._start()
        if run is None:
            return
        try:
            self._send_history(run)
        except Exception as error:  # W&B raises many types; none may reach the run
            self._warn(f"it stopped taking data ({_reason(error)})")
        try:
            run.finish(exit_code=int(self._failed))
        except Exception as error:
            self._warn(f"it did not finish ({_reason(error)})")
        self._teardown()

    def _start(self) -> Any:
        """Starts an online run if wanted and possible, else an offline one; None if neither is possible."""
        modes: tuple[OwnMode, ...] = ("online", "offline") if self.mode == "online" else ("offline",)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self._teardown()  # the service of before a restart
        for mode in modes:
            if self._is_given_up:
                break
            try:
                return self._init(mode)
            except Exception as error:
                instead = "; it is recorded offline" if mode == "online" else ""
                self._warn(f"no {mode} run ({_reason(error)}){instead}")
                self._teardown()
        return None

    def _init(self, mode: OwnMode) -> Any:
        import wandb  # takes half a second

        folder = self._folder.wandb
        if OWN_DATA_DIR is None:
            os.environ["WANDB_DATA_DIR"] = str(folder / "data")  # unsent artifacts stay in the run folder
        id_ = _run_id(folder, renew=self._history.is_set_back)
        self._history.is_set_back = False
        before = parts_of(folder, run_id=id_)
        settings = wandb.Settings(
            console="off",
            disable_job_creation=True,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
            init_timeout=INIT_TIMEOUT_S,
            save_code=False,
            silent=True,
            x_transaction_log_flush_interval=FLUSH_INTERVAL_S,
        )
        run: Any = wandb.init(
            project=self._config.tracking.project,
            name=self._config.run.name,
            group=self._group or None,
            id=id_,
            resume="allow",
            dir=self._folder.path,
            mode=mode,
            config=self._config.model_dump(mode="json"),
            settings=settings,
        )
        self._first = run.starting_step if mode == "online" else self._num_rows(before)
        if mode == "online":
            mark_synced(before)  # rows that W&B lacks are sent from here
        run.log_artifact = partial(publish, run)  # logs tables, too
        for axis in (STEP, SFT_STEP):
            run.define_metric(axis, hidden=True)
        for section in SECTIONS:
            run.define_metric(f"{section}/*", step_metric=axis_of(section))
        return run

    def _send_history(self, run: Any) -> None:
        """Sends every entry that W&B lacks, once; then the outputs of the run."""
        lineage = ArtifactLineage(run, folder=self._folder, config=self._config)
        media = MediaBuilder(self._folder, most_dialogues=self._config.tracking.dialogues_per_step)
        self._try(lineage.inputs)
        best: dict[str, float] = {}
        for number, entry in enumerate(follow(self._history.path, wait=lambda: self._wait(run))):
            media.note(entry)
            better = better_than(best, entry)
            best |= better
            if number >= self._first:
                media_of_entry = self._try(lambda entry=entry: media.build(entry)) or {}
                run.log({**entry.values, **media_of_entry}, step=number, commit=True)
                self._try(lineage.checkpoints)
            if better:
                run.summary.update(better)
        if not self._restarts:
            self._try(lineage.outputs)

    def _try(self, work: Callable[[], Any]) -> Any:
        """Calls `work`, whose failure (a deleted file, for example) must not affect the metrics."""
        try:
            return work()
        except Exception as error:
            self._warn(f"something is missing there ({type(error).__name__}: {_reason(error)})")
            return None

    def _wait(self, run: Any) -> bool:
        """Waits at the end of the history and sends alerts; False once no more entries can come."""
        while not self._alerts.empty():
            self._send(run, self._alerts.get())
        if self._is_last_poll:
            return False
        self._is_last_poll = self._closing.is_set()  # polls once more, for entries from before
        if not self._is_last_poll:
            self._wakeup.wait(POLL_INTERVAL_S)
            self._wakeup.clear()
        return True

    def _num_rows(self, parts: list[Path]) -> int:
        """Rows in the run's earlier parts; if unknown, all existing rows."""
        try:
            return num_rows(parts)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._warn(f"its files of before cannot be read ({_reason(error)})")
            return sum(1 for _ in read_entries(self._history.path))

    def _teardown(self) -> None:
        """Waits until W&B's service process has ended: it keeps the id of a run that could not start, and the
        end of the program would wait for it without limit."""
        if not self._is_given_up:  # else it may already serve the next run
            with suppress(Exception):  # it may be dead
                import wandb

                wandb.teardown()

    def _send(self, run: Any, alert: Alert) -> None:
        run.alert(alert.title, alert.text, level=alert.level, wait_duration=ALERT_WAIT_S)


def _run_id(folder: Path, *, renew: bool) -> str:
    """The run's id in W&B, stored in its folder: a resumed run continues the same W&B run."""
    path = folder / "run_id"
    if renew or not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _reason(error: Exception) -> str:
    return first_line(error) or type(error).__name__
