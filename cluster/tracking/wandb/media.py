"""W&B tables and histograms of a history entry, built when the entry is sent."""

import time
from pathlib import Path
from typing import Any

from cluster.evaluation.results import EvaluationRow, read_row
from cluster.run_folder.paths import RunFolder
from cluster.tracking.wandb.history import HistoryEntry
from cluster.tracking.wandb.tables import StepMedia, evaluation_media, step_media
from learners.buffer.archive import FILE_NAME, MAX_PENDING

ARCHIVE_TIMEOUT_S = 10.0
"""A step's dialogues are written behind it."""
SHORT_WAIT_S = 1.0
"""The same after files that did not come in time, until one does: the numbers behind them are late enough."""
LOOK_INTERVAL_S = 0.05


class MediaBuilder:
    """Pictures of one run's entries, in their order."""

    def __init__(self, folder: RunFolder, *, most_dialogues: int):
        self._folder = folder.trajectories
        self._most_dialogues = most_dialogues
        self._scores: dict[str, list[EvaluationRow]] = {}
        """Rows of all evaluations so far, by split."""
        self._patience_s = ARCHIVE_TIMEOUT_S

    def note(self, entry: HistoryEntry) -> None:
        """Every entry, also where its pictures are not asked for: a matrix has the evaluations before it."""
        if entry.kind == "evaluation":
            rows = [read_row(dict(row)) for row in entry.rows]
            others = [row for row in self._scores.get(entry.split, []) if row.stage != entry.stage]
            self._scores[entry.split] = [*others, *rows]

    def pictures(self, entry: HistoryEntry) -> dict[str, Any]:
        """W&B's objects by their names. Raises OSError, also where a step's file does not come in time, and
        what Arrow raises."""
        import wandb

        made = self._made(entry)
        tables = {
            key: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for key, table in made.tables.items()
        }
        histograms = {
            key: wandb.Histogram(np_histogram=(found.counts, found.edges))
            for key, found in made.histograms.items()
        }
        return {**tables, **histograms}

    def _made(self, entry: HistoryEntry) -> StepMedia:
        if entry.kind == "sft":
            return StepMedia(tables={}, histograms={})
        file = self._folder / f"{entry.archive}.parquet"
        if entry.kind == "evaluation":  # told of once its file is there
            rows = self._scores[entry.split]
            return evaluation_media(file, rows=rows, step=entry.step, most_dialogues=self._most_dialogues)
        self._await(file, step=entry.step)
        parts = sorted(self._folder.glob(f"{entry.archive}-part-*.parquet"))
        return step_media([file, *parts], step=entry.step, most_dialogues=self._most_dialogues)

    def _await(self, file: Path, *, step: int) -> None:
        deadline = time.monotonic() + (0.0 if self._is_passed(step) else self._patience_s)
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(LOOK_INTERVAL_S)
        if not file.exists():
            self._patience_s = min(SHORT_WAIT_S, ARCHIVE_TIMEOUT_S)
            raise FileNotFoundError(f"{file.name} did not come in time")
        self._patience_s = ARCHIVE_TIMEOUT_S

    def _is_passed(self, step: int) -> bool:
        """Whether files are there that are only begun when this step's is written, or given up."""
        found = (FILE_NAME.fullmatch(path.name) for path in self._folder.glob("step-*.parquet"))
        return max((int(name[1]) for name in found if name), default=0) >= step + MAX_PENDING
