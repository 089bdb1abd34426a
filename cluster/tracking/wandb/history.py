"""Ordered log of what is sent to W&B: `wandb/history.jsonl`, one line a row of W&B's history. The line number
is the row's step in W&B, so a resumed run knows which rows are there already.

Rebuilt from the run folder's other files after a crash. Knows nothing of W&B.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.evaluation.results import VALIDATION, EvaluationRow, read_rows, rows_as_json
from cluster.run_folder.paths import RunFolder, write_whole
from cluster.tracking.wandb.sections import SFT_STEP, STEP, dashboard_key
from learners.buffer.archive import step_file

HistoryKind = Literal["step", "sft", "evaluation"]
STAGE_ORDER = {"untrained": 0, "sft": 1, "grpo": 3}
"""Of evaluations at the same step; validations stand between."""
BEST, BEST_STEP = "best", "best_step"
"""Ends of the names in the run's summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEntry:
    """One row, without its pictures."""

    kind: HistoryKind
    step: int
    """GRPO steps behind it; SFT steps where it is about those."""
    values: Mapping[str, float]
    """Scalars by their names in W&B, all finite."""
    stage: str = ""
    """Of an evaluation."""
    split: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    """Of an evaluation: as in evaluation.json."""

    @property
    def archive(self) -> str:
        """The file of its dialogues, without its ending; empty where it has none."""
        return {"step": step_file(self.step), "evaluation": f"evaluation-{self.stage}", "sft": ""}[self.kind]


def step_entry(step: int, *, metrics: Mapping[str, float | None]) -> HistoryEntry:
    """Of a line of metrics.jsonl."""
    return HistoryEntry(kind="step", step=step, values={STEP: step, **_named(metrics)})


def sft_entry(sft_step: int, *, metrics: Mapping[str, float]) -> HistoryEntry:
    """Of an optimizer step of SFT: the learner's numbers stand under `sft/`."""
    renamed = {key.replace("learner/", "sft/", 1): value for key, value in metrics.items()}
    return HistoryEntry(kind="sft", step=sft_step, values={SFT_STEP: sft_step, **_named(renamed)})


def evaluation_entry(rows: Sequence[EvaluationRow], *, step: int) -> HistoryEntry:
    """Entry of one evaluation of the policy after `step` GRPO steps."""
    numbers = ("score", "low", "high", "turns")
    values = {f"eval/{row.split}/{row.gym}/{name}": getattr(row, name) for row in rows for name in numbers}
    return HistoryEntry(
        kind="evaluation",
        step=step,
        values={STEP: step, **_named(values)},
        stage=rows[0].stage,
        split=rows[0].split,
        rows=rows_as_json(rows)["rows"],
    )


def _named(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """By their names in W&B; what is no number is left out, as it is null in metrics.jsonl."""
    return {
        dashboard_key(key): value
        for key, value in numbers.items()
        if value is not None and math.isfinite(value)
    }


class WandbHistory:
    """The log file. An added entry is on disk before `add` returns."""

    def __init__(self, folder: RunFolder, *, resume_step: int):
        """Keeps what is of steps up to `resume_step`, and adds what the folder knows beyond it."""
        self.path = folder.wandb / "history.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = list(read_entries(self.path))
        kept = [entry for entry in entries if entry.kind == "sft" or entry.step <= resume_step]
        self.is_set_back = len(kept) < len(entries)
        """Whether W&B may have been told of steps that never were."""
        write_whole(self.path, "".join(_line(entry) for entry in kept))
        self._told: dict[tuple[HistoryKind, str], int] = {}
        """The last step of each kind and stage; steps arrive in order, except repeated ones."""
        for entry in kept:
            self._is_new(entry)
        self._file = self.path.open("a", encoding="utf-8")
        for entry in _of_folder(folder):
            self.add(entry)

    def add(self, entry: HistoryEntry) -> None:
        """Adds it at the end, unless it is there."""
        if self._is_new(entry):
            self._file.write(_line(entry))
            self._file.flush()

    def _is_new(self, entry: HistoryEntry) -> bool:
        """Notes it, too."""
        key = entry.kind, entry.stage
        is_new = entry.step > self._told.get(key, -1)
        if is_new:
            self._told[key] = entry.step
        return is_new

    def close(self) -> None:
        self._file.close()


def read_entries(path: Path) -> Iterator[HistoryEntry]:
    """The entries of a file, none where there is none; a last line that a crash left half written is no
    entry."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield HistoryEntry(**json.loads(line))


def follow(path: Path, *, wait: Callable[[], bool]) -> Iterator[HistoryEntry]:
    """The entries of a file that grows. At its end `wait` is asked whether to look again."""
    with path.open(encoding="utf-8") as file:
        while True:
            place = file.tell()
            line = file.readline()
            if line.endswith("\n"):
                yield HistoryEntry(**json.loads(line))
                continue
            file.seek(place)
            if not wait():
                return


def better_than(best: Mapping[str, float], entry: HistoryEntry) -> dict[str, float]:
    """What an entry changes in the summary of a run: its best training reward and its best scores, and at
    which steps. W&B keeps the last value itself.

    Example: `{"rollout/reward/mean/best": 0.75, "rollout/reward/mean/best_step": 42}`.
    """
    found: dict[str, float] = {}
    for key, value in entry.values.items():
        is_score = key.startswith("eval/") and key.endswith("/average/score")
        if (is_score or key == "rollout/reward/mean") and value > best.get(f"{key}/{BEST}", -math.inf):
            found |= {f"{key}/{BEST}": value, f"{key}/{BEST_STEP}": entry.step}
    return found


def _of_folder(folder: RunFolder) -> list[HistoryEntry]:
    """What metrics.jsonl and the evaluations give, in the order in which it came about."""
    steps: list[HistoryEntry] = []
    if folder.metrics.exists():
        for line in folder.metrics.read_text(encoding="utf-8").splitlines():
            metrics: dict[str, Any] = json.loads(line)
            steps.append(step_entry(metrics.pop("step"), metrics=metrics))
    last = max((entry.step for entry in steps), default=0)
    by_stage: dict[str, list[EvaluationRow]] = {}
    for row in (*read_rows(folder.evaluation), *read_rows(folder.validation)):
        by_stage.setdefault(row.stage, []).append(row)
    evaluations = [
        evaluation_entry(rows, step=_step_of(stage, last=last)) for stage, rows in by_stage.items()
    ]
    order = {id(entry): (entry.step, entry.kind == "evaluation") for entry in (*steps, *evaluations)}
    evaluations.sort(key=lambda entry: STAGE_ORDER.get(entry.stage, 2))
    return sorted((*steps, *evaluations), key=lambda entry: order[id(entry)])


def _step_of(stage: str, *, last: int) -> int:
    """GRPO steps behind the policy of an evaluation."""
    if stage.startswith(VALIDATION):
        return int(stage.removeprefix(VALIDATION))
    return 0 if stage in ("untrained", "sft") else last


def _line(entry: HistoryEntry) -> str:
    return json.dumps(asdict(entry)) + "\n"
