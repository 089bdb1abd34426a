"""Terminal renderer of stderr: scrolling lines, with progress bars of the run and of its current stage at the
bottom."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from cluster.console.eta import short_time
from cluster.console.events import (
    Event,
    LogLine,
    RunProgress,
    StageProgress,
    StepFinished,
    WaitReason,
    printable,
    stage_line,
)

STYLES = {"line": "", "trouble": "yellow", "refused": "red", "failed": "red"}
REFRESHES_PER_S = 4
"""Few: the cores are for the run."""
BAR_WIDTH = 18
NOT_NOTE = BAR_WIDTH + 44
"""Columns of a bar's line that are not its name or its note, at most."""


class TerminalScreen:
    """Bars appear with a run or a stage and go with it."""

    def __init__(self) -> None:
        self._console = _LastingConsole(stderr=True, highlight=False, markup=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        """By stage."""
        self._run = ""
        """The run's name in `_tasks`, once it has begun."""

    def hear(self, event: Event) -> None:
        match event:
            case LogLine():
                self._print(event.text, style=STYLES[event.kind])
            case RunProgress():
                self._run = f"run {event.run}"
                self._set(self._run, done=event.step, total=event.num_steps, left_s=None, note="")
            case StepFinished():
                self._print(event.text)
                if self._run:
                    left_s, note = event.left_s, ""
                    self._set(self._run, done=event.step, total=event.num_steps, left_s=left_s, note=note)
            case StageProgress():
                self._stage(event)
            case WaitReason():
                if self._run and self._bars is not None:
                    self._bars.update(self._tasks[self._run], note=self._fitting(self._run, event.text))

    def close(self) -> None:
        """The bars go, what was printed stays."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._run = None, ""
        self._tasks.clear()

    def _stage(self, stage: StageProgress) -> None:
        if not stage.is_over:
            name, left_s = stage.stage, stage.left_s
            self._set(name, done=stage.done, total=stage.total, left_s=left_s, note=stage.note)
            return
        if self._bars is not None and stage.stage in self._tasks:
            self._bars.remove_task(self._tasks.pop(stage.stage))
        self._print(stage_line(stage))
        if not self._tasks:
            self.close()

    def _set(self, name: str, *, done: int, total: int, left_s: float | None, note: str) -> None:
        bars = self._bars or self._begin()
        ends_at = None if left_s is None else time.monotonic() + left_s
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, note="", ends_at=None)
        bars.update(
            self._tasks[name],
            completed=done,
            total=total,
            note=self._fitting(name, note),
            ends_at=ends_at,
        )

    def _begin(self) -> Progress:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(),
            Elapsed(),
            _Left(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # results in a pipe stay results
        )
        self._bars.start()
        return self._bars

    def _print(self, text: str, *, style: str = "") -> None:
        """Without bars a long line is left to the terminal, so that what is copied from it is whole."""
        self._console.print(Text(printable(text), style=style), soft_wrap=self._bars is None)

    def _fitting(self, name: str, note: str) -> str:
        """A bar is one line."""
        room = max(0, self._console.width - NOT_NOTE - len(name))
        note = printable(note)
        return note if len(note) <= room else note[: max(0, room - 1)] + "…" * (room > 0)


class _Left(ProgressColumn):
    """Time left; it goes down while nothing is heard."""

    def render(self, task: Task) -> Text:
        ends_at = task.fields["ends_at"]
        if ends_at is None or task.finished:
            return Text("")
        return Text(f"{short_time(ends_at - time.monotonic())} left", style="progress.remaining")


class _LastingConsole(Console):
    """A terminal that goes away takes no run with it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
