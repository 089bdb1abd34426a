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
"""Timeout for a step's dialogues, which are written after its metrics."""
SHORT_TIMEOUT_S = 1.0
"""The timeout after one was exceeded, until a file is in time: later metrics must not be delayed more."""
POLL_INTERVAL_S = 0.05


class MediaBuilder:
    """Builds the media of one run's entries, in their order."""

    def __init__(self, folder: RunFolder, *, most_dialogues: int):
        self._folder = folder.trajectories
        self._most_dialogues = most_dialogues
        self._scores: dict[str, list[EvaluationRow]] = {}
        """Rows of all evaluations so far, by split."""
        self._timeout_s = ARCHIVE_TIMEOUT_S

    def note(self, entry: HistoryEntry) -> None:
        """Must be called for every entry: the matrix of an evaluation contains those before it."""
        if entry.kind == "evaluation":
            rows = [read_row(dict(row)) for row in entry.rows]
            others = [row for row in self._scores.get(entry.split, []) if row.stage != entry.stage]
            self._scores[entry.split] = [*others, *rows]

    def build(self, entry: HistoryEntry) -> dict[str, Any]:
        """W&B objects by their names. Raises OSError, also if a step's file is not written in time, and
        Arrow's errors."""
        import wandb

        media = self._media(entry)
        tables = {
            key: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for key, table in media.tables.items()
        }
        histograms = {
            key: wandb.Histogram(np_histogram=(found.counts, found.edges))
            for key, found in media.histograms.items()
        }
        return {**tables, **histograms}

    def _media(self, entry: HistoryEntry) -> StepMedia:
        if entry.kind == "sft":
            return StepMedia(tables={}, histograms={})
        file = self._folder / f"{entry.archive}.parquet"
        if entry.kind == "evaluation":  # logged after its file is written
            rows = self._scores[entry.split]
            return evaluation_media(file, rows=rows, step=entry.step, most_dialogues=self._most_dialogues)
        self._await(file, step=entry.step)
        parts = sorted(self._folder.glob(f"{entry.archive}-part-*.parquet"))
        return step_media([file, *parts], step=entry.step, most_dialogues=self._most_dialogues)

    def _await(self, file: Path, *, step: int) -> None:
        deadline = time.monotonic() + (0.0 if self._is_lost(step) else self._timeout_s)
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        if not file.exists():
            self._timeout_s = min(SHORT_TIMEOUT_S, ARCHIVE_TIMEOUT_S)
            raise FileNotFoundError(f"{file.name} was not written in time")
        self._timeout_s = ARCHIVE_TIMEOUT_S

    def _is_lost(self, step: int) -> bool:
        """Whether there are files that are only started after this step's file is written or given up."""
        found = (FILE_NAME.fullmatch(path.name) for path in self._folder.glob("step-*.parquet"))
        return max((int(name[1]) for name in found if name), default=0) >= step + MAX_PENDING
