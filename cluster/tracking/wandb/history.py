"""Ordered log of the rows for W&B: `wandb/history.jsonl`, and the names of metrics there. The line number is
the row's step in W&B, so a resumed run knows which rows W&B has already.

Rebuilt from the run folder's other files after a crash. Does not import W&B.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.evaluation.results import VALIDATION, EvaluationRow, read_rows, rows_as_json
from cluster.run_folder.atomic_files import write_whole
from cluster.run_folder.paths import RunFolder
from learners.buffer.archive import step_file

SECTIONS = ("train", "rollout", "users", "time", "ledger", "eval", "sft")
"""In the order of a dashboard. W&B groups panels by the part of a name before the first slash."""
SECTION_BY_PREFIX = {
    "learner/idle/": "time",
    "engine/idle/": "time",
    "engine/paused/": "time",
    "rollout/time/": "time",
    "rollout/turn_s/": "time",
    "learner/": "train",
    "engine/": "rollout",
    "buffer/": "ledger",
    "checkpoint/": "ledger",
}
"""Prefixes of keys whose section is not their first word; the first match decides."""
STEP, SFT_STEP = "step", "sft/step"
"""The two axes: optimizer steps of GRPO, and of SFT."""
HistoryKind = Literal["step", "sft", "evaluation"]
STAGE_ORDER = {"untrained": 0, "sft": 1, "grpo": 3}
"""Order of evaluations at the same step; validations come between."""
BEST, BEST_STEP = "best", "best_step"
"""Suffixes of names in the run's summary."""


def section_of(key: str) -> str:
    """The section of a key of metrics.jsonl."""
    for prefix, section in SECTION_BY_PREFIX.items():
        if key.startswith(prefix):
            return section
    room = key.partition("/")[0]
    return room if room in SECTIONS else "train"


def dashboard_key(key: str) -> str:
    """The name in W&B of a key of metrics.jsonl: the section, then the whole key.

    Example: `learner/entropy` is `train/learner/entropy`, and `time/wait_s` is `time/wait_s`.
    """
    section = section_of(key)
    return key if key == STEP or key.startswith(f"{section}/") else f"{section}/{key}"


def axis_of(section: str) -> str:
    """The x axis of a section."""
    return SFT_STEP if section == "sft" else STEP


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEntry:
    """One row, without its media."""

    kind: HistoryKind
    step: int
    """GRPO steps so far; of kind sft: SFT steps."""
    values: Mapping[str, float]
    """Finite scalars by their names in W&B."""
    stage: str = ""
    """Of an evaluation."""
    split: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    """Of an evaluation: its rows of evaluation.json."""

    @property
    def archive(self) -> str:
        """Name of the file with its dialogues, without the suffix; empty if there is none."""
        return {"step": step_file(self.step), "evaluation": f"evaluation-{self.stage}", "sft": ""}[self.kind]


def step_entry(step: int, *, metrics: Mapping[str, float | None]) -> HistoryEntry:
    """Entry of a line of metrics.jsonl."""
    return HistoryEntry(kind="step", step=step, values={STEP: step, **_named(metrics)})


def sft_entry(sft_step: int, *, metrics: Mapping[str, float]) -> HistoryEntry:
    """Entry of an optimizer step of SFT, with the learner's metrics under `sft/`."""
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
    """Finite values by their names in W&B."""
    return {
        dashboard_key(key): value
        for key, value in numbers.items()
        if value is not None and math.isfinite(value)
    }


class WandbHistory:
    """The log file. An added entry is on disk before `add` returns."""

    def __init__(self, folder: RunFolder, *, resume_step: int):
        """Keeps entries of steps up to `resume_step`, and adds missing ones from the folder's other files."""
        self.path = folder.wandb / "history.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = list(read_entries(self.path))
        kept = [entry for entry in entries if entry.kind == "sft" or entry.step <= resume_step]
        self.is_set_back = len(kept) < len(entries)
        """Whether W&B may have rows of steps that were undone."""
        write_whole(self.path, "".join(_line(entry) for entry in kept))
        self._last_steps: dict[tuple[HistoryKind, str], int] = {}
        """The last step of each kind and stage; steps arrive in order, except repeated ones."""
        for entry in kept:
            self._is_new(entry)
        self._file = self.path.open("a", encoding="utf-8")
        for entry in _of_folder(folder):
            self.add(entry)

    def add(self, entry: HistoryEntry) -> None:
        """Appends an entry, unless the log has it."""
        if self._is_new(entry):
            self._file.write(_line(entry))
            self._file.flush()

    def _is_new(self, entry: HistoryEntry) -> bool:
        """Whether the log lacks this entry; from then on it counts as present."""
        key = entry.kind, entry.stage
        is_new = entry.step > self._last_steps.get(key, -1)
        if is_new:
            self._last_steps[key] = entry.step
        return is_new

    def close(self) -> None:
        self._file.close()


def read_entries(path: Path) -> Iterator[HistoryEntry]:
    """The entries of a file; none if it does not exist. Skips a last line that a crash left incomplete."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield HistoryEntry(**json.loads(line))


def follow(path: Path, *, wait: Callable[[], bool]) -> Iterator[HistoryEntry]:
    """The entries of a growing file. At its end calls `wait`, which returns whether to read on."""
    with path.open(encoding="utf-8") as file:
        while True:
            position = file.tell()
            line = file.readline()
            if line.endswith("\n"):
                yield HistoryEntry(**json.loads(line))
                continue
            file.seek(position)
            if not wait():
                return


def better_than(best: Mapping[str, float], entry: HistoryEntry) -> dict[str, float]:
    """The changes of a run's summary by an entry: best training reward, best scores, and their steps. W&B
    itself keeps the last values.

    Example: `{"rollout/reward/mean/best": 0.75, "rollout/reward/mean/best_step": 42}`.
    """
    found: dict[str, float] = {}
    for key, value in entry.values.items():
        is_score = key.startswith("eval/") and key.endswith("/average/score")
        if (is_score or key == "rollout/reward/mean") and value > best.get(f"{key}/{BEST}", -math.inf):
            found |= {f"{key}/{BEST}": value, f"{key}/{BEST_STEP}": entry.step}
    return found


def _of_folder(folder: RunFolder) -> list[HistoryEntry]:
    """Entries of metrics.jsonl and the evaluations, in the order of the run."""
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
    """GRPO steps of the policy of an evaluation."""
    if stage.startswith(VALIDATION):
        return int(stage.removeprefix(VALIDATION))
    return 0 if stage in ("untrained", "sft") else last


def _line(entry: HistoryEntry) -> str:
    return json.dumps(asdict(entry)) + "\n"
