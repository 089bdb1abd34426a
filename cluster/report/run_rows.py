"""Reader of a run folder for the report: steps, scores and dialogues as rows, from which all other numbers of
the report are computed.

Never writes; a file that a running job is replacing is read either whole or not at all.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64
from numpy import ndarray

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.evaluation.outcomes import group_simulators
from cluster.evaluation.results import EvaluationRow, read_rows
from cluster.run_folder.paths import RunFolder

LIGHT = ("group_id", "trajectory", "turn", "gym", "simulator", "failed", "env_reward", "step")
"""What the curves need of a row."""
EVALUATION = "evaluation-"
"""Begins the name of a file of evaluation dialogues; the rest is the stage."""
TRAINING = "training"
"""The stage of the dialogues that GRPO plays."""
MOST_FILES_KEPT = 4096
"""Number of files whose dialogues are cached while a page follows a run."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FileDialogues:
    """The dialogues of one Parquet file: D of them, in file order."""

    path: Path
    stage: str
    """`training`, or the stage of an evaluation."""
    first_rows: Int64[ndarray, "D"]
    num_rows: int
    is_counted: bool
    """Whether a step's metrics are of them: not of what was dropped after the last step before a stop."""
    groups: Int64[ndarray, "D"]
    """Which of the file's groups each belongs to, from 0."""
    steps: Int64[ndarray, "D"]
    """The step that settled it; 0 in an evaluation."""
    gyms: list[str]  # [D]
    simulators: list[str]  # [D]
    scores: Float64[ndarray, "D"]
    """Sum of the environment's turn rewards; NaN where the dialogue failed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunRows:
    """One run as its folder has it."""

    name: str
    folder: RunFolder
    config: RunConfig | None
    """None where config.toml is of another version of the program."""
    toml: str
    steps: Int64[ndarray, "num_steps"]
    metrics: dict[str, Float64[ndarray, "num_steps"]]
    """Every key of metrics.jsonl; NaN where a step does not have it."""
    tests: list[EvaluationRow]
    validations: list[EvaluationRow]
    files: list[FileDialogues]

    @property
    def num_dialogues(self) -> int:
        return sum(len(file.scores) for file in self.files)

    @property
    def gyms(self) -> list[str]:
        return sorted({gym for file in self.files if file.stage == TRAINING for gym in file.gyms})

    @property
    def simulators(self) -> list[str]:
        return sorted({name for file in self.files if file.stage == TRAINING for name in file.simulators})

    def last(self, key: str) -> float | None:
        """A metric's newest value; None where no step has it."""
        values = self.metrics.get(key, np.zeros(0))
        known = values[np.isfinite(values)]
        return float(known[-1]) if len(known) else None


def read_runs(paths: Sequence[Path]) -> list[RunRows]:
    """The runs in these folders, each under its folder's name, and as much of the path as tells it from the
    others. Raises `BadInput` where a folder is no run, or stands there twice."""
    whole = [path.resolve() for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for path, other in zip(paths, whole, strict=True) if whole.count(other) > 1)
        raise BadInput(f"{twice}: given twice: a run is compared with others: leave one out")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return [read_run(path, name="/".join(path.parts[-depth:])) for path in whole]


def read_run(path: Path, *, name: str) -> RunRows:
    """The run in this folder. Raises `BadInput` where there is none."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise BadInput(f"{path}: no config.toml there: give a run folder such as runs/NAME")
    try:
        config = load(folder.config)
    except BadInput:
        config = None
    steps, metrics = read_metrics(folder.metrics)
    files = sorted(folder.trajectories.glob("*.parquet"))
    return RunRows(
        name=name,
        folder=folder,
        config=config,
        toml=folder.config.read_text(encoding="utf-8"),
        steps=steps,
        metrics=metrics,
        tests=read_rows(folder.evaluation),
        validations=read_rows(folder.validation),
        files=[file for path in files if (file := _read_file_now(path)) is not None],
    )


def read_metrics(path: Path) -> tuple[ndarray, dict[str, ndarray]]:
    """Steps and columns of metrics.jsonl; a last line that is still being written is left for later."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")
    ]
    keys = dict.fromkeys(key for row in rows for key in row if key != "step")
    columns = {key: np.array([_number(row.get(key)) for row in rows], np.float64) for key in keys}
    return np.array([row["step"] for row in rows], np.int64), columns


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _read_file_now(path: Path) -> FileDialogues | None:
    """None where a run has just taken the file away."""
    try:
        stat = path.stat()
        return _read_file(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=MOST_FILES_KEPT)
def _read_file(path: Path, mtime_ns: int, size: int) -> FileDialogues:
    """The file's dialogues; `mtime_ns` and `size` tell its versions apart."""
    with pq.ParquetFile(path) as file:
        table = file.read([name for name in LIGHT if name in file.schema_arrow.names])
    first_rows = np.flatnonzero(table["turn"].to_numpy() == 0)
    starts = first_rows.tolist()
    group_ids, trajectories = (table[key].to_numpy()[first_rows] for key in ("group_id", "trajectory"))
    is_new = (np.diff(group_ids, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) < 0)
    failed = table["failed"].to_numpy(zero_copy_only=False)[first_rows]
    scores = np.add.reduceat(table["env_reward"].to_numpy(), first_rows) if starts else np.zeros(0)
    has_step = "step" in table.schema.names
    stage = path.stem.removeprefix(EVALUATION) if path.stem.startswith(EVALUATION) else TRAINING
    return FileDialogues(
        path=path,
        stage=stage,
        first_rows=first_rows,
        num_rows=table.num_rows,
        is_counted=stage == TRAINING and not path.stem.endswith("-rest"),
        groups=np.cumsum(is_new) - 1,
        steps=table["step"].to_numpy()[first_rows] if has_step else np.zeros(len(starts), np.int64),
        gyms=table["gym"].take(first_rows).to_pylist(),
        simulators=group_simulators(
            table["simulator"].to_pylist(), starts=starts, groups=(np.cumsum(is_new) - 1).tolist()
        ),
        scores=np.where(failed, np.nan, scores),
    )
