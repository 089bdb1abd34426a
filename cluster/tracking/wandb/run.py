"""W&B run fed by one background thread that reads entries from disk, so that a slow, unreachable or broken
W&B never slows or stops training. docs/wandb.md says what happens to unsent entries."""

import os
import queue
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil

from cluster.config.run_config import RunConfig
from cluster.console.events import first_line
from cluster.console.log import warn
from cluster.run_folder.paths import RunFolder
from cluster.tracking.alerts import Alert
from cluster.tracking.wandb.artifacts import ArtifactLineage, publish
from cluster.tracking.wandb.files import mark_synced, num_rows, parts_of, run_id
from cluster.tracking.wandb.history import WandbHistory, better_than, follow, read_entries
from cluster.tracking.wandb.media import MediaBuilder
from cluster.tracking.wandb.mode import resolve_mode
from cluster.tracking.wandb.sections import SECTIONS, SFT_STEP, STEP, axis_of

OwnMode = Literal["online", "offline"]
OWN_DATA_DIR = os.environ.get("WANDB_DATA_DIR")
"""The user's own staging folder for artifacts, instead of the run folder."""
QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
"""What W&B has to say of itself is no news to a run, and what it reports about itself would wait for a
service that is down."""
INIT_TIMEOUT_S = 20.0
"""After it W&B is taken to be out of reach, and the run is recorded offline."""
FINISH_TIMEOUT_S = 30.0
"""At the end, for what is not sent yet."""
CLOSE_TIMEOUT_S = 45.0
"""Total timeout. W&B's own process is killed after that: received entries are in its file by then."""
NEW_START_TIMEOUT_S = 5.0
"""Timeout if the run restarts at once: the next tracker sends what is left."""
SERVICE = "wandb-core"
"""The name of W&B's own process."""
FLUSH_INTERVAL_S = 1.0
"""Interval between writes of W&B's own file: what a kill -9 may lose until the run resumes."""
LOOK_INTERVAL_S = 1.0
ALERT_WAIT_S = 1800.0
"""W&B sends alerts of one title no more often than this."""


class WandbRun:
    """One W&B run in the run folder; the same run again after a resume."""

    def __init__(self, folder: RunFolder, *, config: RunConfig, history: WandbHistory, group: str = ""):
        """Shows `history` as it grows. `group` is the W&B group of a sweep's runs."""
        self._folder = folder
        self._config = config
        self._history = history
        self._group = group
        self._warned = False
        self._alerts: queue.SimpleQueue[Alert] = queue.SimpleQueue()
        self._news, self._closing = threading.Event(), threading.Event()
        self._is_last_look = False
        self._first = 0
        """The number of the first row that W&B does not have."""
        self._failed = self._goes_on = self._is_given_up = False
        self.mode = resolve_mode(config.tracking.mode)
        """online, offline or disabled."""
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self.mode != "disabled":
            self._thread.start()

    def wake(self) -> None:
        """There is more in the history. Returns at once."""
        self._news.set()

    def alert(self, alert: Alert) -> None:
        """Hands one alert to the thread; returns at once."""
        self._alerts.put(alert)
        self._news.set()

    def close(self, *, failed: bool = False, goes_on: bool = False) -> None:
        """Waits for W&B to write what it has, for a limited time; not for long where the run `goes_on` at
        once, as the same one."""
        limit_s = NEW_START_TIMEOUT_S if goes_on else CLOSE_TIMEOUT_S
        self._failed, self._goes_on = failed, goes_on
        self._closing.set()
        self._news.set()
        if self.mode != "disabled":
            self._thread.join(timeout=limit_s)
        if self._thread.is_alive():
            if not goes_on:
                self._warn(f"it did not finish within {limit_s:g} s")
            self._is_given_up = True
            _end_service()
            self._thread.join(timeout=LOOK_INTERVAL_S)

    def _warn(self, reason: str) -> None:
        if not self._warned and not self._is_given_up:
            self._warned = True
            warn(f"W&B: {reason}; the run continues, docs/wandb.md says how to send the rest")

    def _work(self) -> None:
        """Consumes the history, waits for W&B, produces its files. A fault of W&B ends this work, not the
        run."""
        run = self._start()
        if run is None:
            return
        try:
            self._show(run)
        except Exception as error:  # W&B raises many kinds; none of them may reach the run.
            self._warn(f"it stopped taking data ({_reason(error)})")
        try:
            run.finish(exit_code=int(self._failed))
        except Exception as error:
            self._warn(f"it did not finish ({_reason(error)})")
        self._let_go()

    def _start(self) -> Any:
        """Online where that is wanted and works, else offline; None where nothing works."""
        modes: tuple[OwnMode, ...] = ("online", "offline") if self.mode == "online" else ("offline",)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self._let_go()  # of an interrupted step, after a restart of the run
        for mode in modes:
            if self._is_given_up:
                break
            try:
                return self._init(mode)
            except Exception as error:
                instead = "; it is recorded offline" if mode == "online" else ""
                self._warn(f"no {mode} run ({_reason(error)}){instead}")
                self._let_go()
        return None

    def _init(self, mode: OwnMode) -> Any:
        import wandb  # Half a second, spent here and not at the start of every command.

        place = self._folder.wandb
        if OWN_DATA_DIR is None:
            os.environ["WANDB_DATA_DIR"] = str(place / "data")  # what is sent later lies with the run
        id_ = run_id(place, anew=self._history.is_set_back)
        self._history.is_set_back = False
        before = parts_of(place, run_id=id_)
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
            mark_synced(before)  # what they have and W&B has not is sent from here
        run.log_artifact = partial(publish, run)  # every table is one: `publish` says why
        for axis in (STEP, SFT_STEP):
            run.define_metric(axis, hidden=True)
        for section in SECTIONS:
            run.define_metric(f"{section}/*", step_metric=axis_of(section))
        return run

    def _show(self, run: Any) -> None:
        """Every entry that W&B does not have, once, as it comes; then what the run leaves behind."""
        lineage = ArtifactLineage(run, folder=self._folder, config=self._config)
        book = MediaBuilder(self._folder, most_dialogues=self._config.tracking.dialogues_per_step)
        self._try(lineage.inputs)
        best: dict[str, float] = {}
        for number, entry in enumerate(follow(self._history.path, wait=lambda: self._wait(run))):
            book.note(entry)
            better = better_than(best, entry)
            best |= better
            if number >= self._first:
                pictures = self._try(lambda entry=entry: book.pictures(entry)) or {}
                run.log({**entry.values, **pictures}, step=number, commit=True)
                self._try(lineage.checkpoints)
            if better:
                run.summary.update(better)
        if not self._goes_on:
            self._try(lineage.outputs)

    def _try(self, work: Callable[[], Any]) -> Any:
        """Media may fail (a deleted file, for example) without affecting the numbers."""
        try:
            return work()
        except Exception as error:
            self._warn(f"something is not shown there ({type(error).__name__}: {_reason(error)})")
            return None

    def _wait(self, run: Any) -> bool:
        """Between two looks at the history, where it was at its end: False once nothing more will come."""
        while not self._alerts.empty():
            self._send(run, self._alerts.get())
        if self._is_last_look:
            return False
        self._is_last_look = self._closing.is_set()  # and one more look, at what came before that
        if not self._is_last_look:
            self._news.wait(LOOK_INTERVAL_S)
            self._news.clear()
        return True

    def _num_rows(self, parts: list[Path]) -> int:
        """Rows in the run's earlier parts; if unknown, all existing rows."""
        try:
            return num_rows(parts)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._warn(f"what is there already cannot be read ({_reason(error)})")
            return sum(1 for _ in read_entries(self._history.path))

    def _let_go(self) -> None:
        """Waits until W&B's own process has ended: it holds the id of a run that could not begin, and the end
        of the program would wait for it, for however long."""
        if not self._is_given_up:  # else it may serve the next run by now
            with suppress(Exception):  # it may be dead already
                import wandb

                wandb.teardown()

    def _send(self, run: Any, alert: Alert) -> None:
        run.alert(alert.title, alert.text, level=alert.level, wait_duration=ALERT_WAIT_S)


def _end_service() -> None:
    """Ends W&B's own process now."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if SERVICE in process.name():
                process.kill()


def _reason(error: Exception) -> str:
    return first_line(error) or type(error).__name__
