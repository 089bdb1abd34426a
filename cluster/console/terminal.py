"""Terminal handler of stderr: scrolling lines, with progress bars of the run and of its current stage
below."""

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Column
from rich.text import Text

from cluster.console.eta import short_time
from cluster.console.events import RunProgress, StageProgress, StepFinished, WaitReason, printable
from cluster.console.log import BARS_ONLY, LineHandler

STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}
REFRESHES_PER_S = 4
"""Low, since the run needs the cores."""
BAR_WIDTH = 18


class TerminalHandler(LineHandler):
    """Shows lines and bars. A bar exists while its run or stage does."""

    def __init__(self) -> None:
        super().__init__(BARS_ONLY)
        self._console = _RobustConsole(stderr=True, highlight=False, markup=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        """By name of the run or stage."""
        self._run = ""
        """The run's name in `_tasks`, once it has started."""

    def show(self, record: logging.LogRecord) -> None:
        match record.msg:
            case RunProgress() as run:
                self._run = f"run {run.run}"
                self._set(self._run, done=run.step, total=run.num_steps)
            case WaitReason() as wait:
                if self._run and self._bars is not None:
                    self._bars.update(self._tasks[self._run], note=printable(wait.text))
            case StageProgress(is_over=False) as stage:
                self._set(
                    stage.stage, done=stage.done, total=stage.total, left_s=stage.left_s, note=stage.note
                )
            case StageProgress() as stage:
                if self._bars is not None and stage.stage in self._tasks:
                    self._bars.remove_task(self._tasks.pop(stage.stage))
                self._print(record)
                if not self._tasks:
                    self.close()
            case StepFinished() as step:
                self._print(record)
                if self._run:
                    self._set(self._run, done=step.step, total=step.num_steps, left_s=step.left_s)
            case _:
                self._print(record)

    def close(self) -> None:
        """Removes the bars; printed lines stay."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._run = None, ""
        self._tasks.clear()

    def _set(self, name: str, *, done: int, total: int, left_s: float | None = None, note: str = "") -> None:
        if self._bars is None:
            self._bars = self._start_bars()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, note="", ends_at=None)
        self._bars.update(
            self._tasks[name],
            completed=done,
            total=total,
            note=printable(note),
            ends_at=None if left_s is None else time.monotonic() + left_s,
        )

    def _start_bars(self) -> Progress:
        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(),
            Elapsed(),
            _TimeLeft(),
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                style="dim",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),  # a bar is one line
            ),
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            expand=True,
            redirect_stdout=sys.stdout.isatty(),  # results in a pipe stay results
        )
        bars.start()
        return bars

    def _print(self, record: logging.LogRecord) -> None:
        """Without bars the terminal wraps long lines itself, so that a copied line is whole."""
        text = Text(printable(record.getMessage()), style=STYLES.get(record.levelno, ""))
        self._console.print(text, soft_wrap=self._bars is None)


class _TimeLeft(ProgressColumn):
    """Remaining time by our own estimate; counts down between two events."""

    def render(self, task: Task) -> Text:
        ends_at = task.fields["ends_at"]
        if ends_at is None or task.finished:
            return Text("")
        return Text(f"{short_time(ends_at - time.monotonic())} left", style="progress.remaining")


class _RobustConsole(Console):
    """A console that falls silent when its terminal is closed, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
