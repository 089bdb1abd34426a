"""Metric tracker of the driver: writes each step's metrics to metrics.jsonl, the console and W&B, and raises
alerts."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from cluster.config.run_config import RunConfig
from cluster.console.events import WaitReason
from cluster.console.log import LogHandler, logged_to, warn
from cluster.console.progress import report_step
from cluster.evaluation.results import EvaluationRow
from cluster.run_folder.atomic_files import write_whole
from cluster.run_folder.paths import RunFolder
from cluster.tracking.alerts import Alert, RunAlerts, stopped
from cluster.tracking.wandb.history import WandbHistory, evaluation_entry, sft_entry, step_entry
from cluster.tracking.wandb.run import WandbRun
from cluster.workers.restart import RestartError


class Tracker:
    """Owns metrics.jsonl and the W&B run. Use as a context manager, or call `close`."""

    def __init__(self, folder: RunFolder, *, config: RunConfig, resume_step: int = 0, group: str = ""):
        """Keeps metrics of steps up to `resume_step`, even if those are repeated, and deletes those of later
        steps, which were undone. `group` is the W&B group of a sweep's runs."""
        self._num_steps = config.grpo.num_steps
        self._alerts = RunAlerts(
            limits=config.simulator.alarms,
            max_logprob_gap=config.learner.max_logprob_gap,
        )
        self._last_step = 0
        """The last step in metrics.jsonl."""
        for line in _cut_metrics(folder, resume_step=resume_step):
            self._last_step = line.pop("step")
            self._alerts.check_step(self._last_step, metrics=line)
        self._metrics = folder.metrics.open("a", encoding="utf-8")
        self._history = WandbHistory(folder, resume_step=resume_step)
        self._wandb = WandbRun(folder, config=config, history=self._history, group=group)
        self._logging = ExitStack()
        self._logging.enter_context(logged_to(_WaitHandler(self._check_wait)))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restarts = isinstance(error, RestartError)
        failure = error if isinstance(error, Exception) and not restarts else None
        if failure is not None:
            self._wandb.alert(stopped(failure, step=self._last_step))
        self.close(failed=failure is not None, restarts=restarts)

    def log_step(self, step: int, *, metrics: Mapping[str, float]) -> None:
        """One GRPO step: a line on the console, a line in metrics.jsonl, a row in W&B. A repeated step after
        a resume keeps its earlier line and row."""
        report_step(step, num_steps=self._num_steps, metrics=metrics)
        if step <= self._last_step:
            return
        self._last_step = step
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        self._metrics.flush()
        self._history.add(step_entry(step, metrics=finite))
        for alert in self._alerts.check_step(step, metrics=metrics):
            self._emit(alert)
        self._wandb.wake()

    def log_sft(self, sft_step: int, *, metrics: Mapping[str, float]) -> None:
        """One optimizer step of SFT, on its own axis in W&B."""
        self._history.add(sft_entry(sft_step, metrics=metrics))
        self._wandb.wake()

    def log_evaluation(self, rows: Sequence[EvaluationRow], *, step: int) -> None:
        """Scores of one evaluation; `step` is the number of GRPO steps behind the policy."""
        self._history.add(evaluation_entry(rows, step=step))
        self._wandb.wake()

    def close(self, *, failed: bool = False, restarts: bool = False) -> None:
        """`restarts`: the same run continues at once with a new tracker."""
        self._logging.close()
        self._metrics.close()
        self._history.close()
        self._wandb.close(failed=failed, restarts=restarts)

    def _check_wait(self, reason: str, at: float) -> None:
        for alert in self._alerts.check_wait(reason, at=at):
            self._emit(alert)

    def _emit(self, alert: Alert) -> None:
        warn(f"alert: {alert.title}: {alert.text}")
        self._wandb.alert(alert)


class _WaitHandler(LogHandler):
    """Passes on what a step waits for, and since when."""

    def __init__(self, check: Callable[[str, float], None]):
        super().__init__()
        self._check = check

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, WaitReason):
            self._check(record.msg.text, record.created)


def _cut_metrics(folder: RunFolder, *, resume_step: int) -> list[dict[str, Any]]:
    """Deletes lines of later steps, and a last line that a crash left incomplete; returns the others."""
    kept: list[str] = []
    if folder.metrics.exists():
        for line in folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > resume_step:
                break
            kept.append(line)
        write_whole(folder.metrics, "".join(kept))
    return [json.loads(line) for line in kept]
