"""The tracker: a step's numbers to metrics.jsonl, the console and W&B, once a step, from the driver."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

from cluster.config import RunConfig
from cluster.console import say, step_line
from cluster.results import EvaluationRow
from cluster.run_folder import RunFolder, write_whole
from cluster.wandb_run import WandbRun

_TEXT_OF = {"system": "system", "user": "opening", "policy": "text", "feedback": "feedback"}
"""Who speaks, and the column of a group's table that holds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DialogueRow:
    """One message of one dialogue, as the W&B table shows it."""

    step: int
    gym: str
    task: str
    trajectory: int
    """Index of the trajectory in its group."""
    turn: int
    """From 1; 0 is what was said before the first."""
    who: str
    """system, user, policy or feedback."""
    text: str
    reward: float
    """This turn's environment reward; 0 on rows that are not feedback."""
    stop_reason: str


def dialogue_rows(table: pa.Table, *, step: int) -> list[DialogueRow]:
    """One dialogue's table, a row a turn, as lines in reading order."""
    turns = table.to_pylist()

    def line(row: dict[str, Any], who: str, *, turn: int, reward: float = 0.0) -> DialogueRow:
        return DialogueRow(
            step=step,
            gym=row["gym"],
            task=row["task_id"],
            trajectory=row["trajectory"],
            turn=turn,
            who=who,
            text=row[_TEXT_OF[who]],
            reward=reward,
            stop_reason=row["stop_reason"],
        )

    lines = [line(turns[0], who, turn=0) for who in ("system", "user")]
    for row in turns:
        number = row["turn"] + 1
        lines.append(line(row, "policy", turn=number))
        lines.append(line(row, "feedback", turn=number, reward=row["env_reward"]))
    return lines


class Tracker:
    """Owns metrics.jsonl and the W&B run. Use as a context manager, or call `close`."""

    def __init__(self, folder: RunFolder, *, config: RunConfig, resume_step: int = 0):
        """Keeps the metrics of steps up to `resume_step` and cuts those after it: they are trained again."""
        self._num_steps = config.grpo.num_steps
        _cut_metrics(folder, resume_step=resume_step)
        self._metrics = folder.metrics.open("a", encoding="utf-8")
        self._wandb = WandbRun(folder.path, name=config.run.name, config=config)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_step(
        self, step: int, *, metrics: Mapping[str, float], dialogues: Sequence[DialogueRow] = ()
    ) -> None:
        """One GRPO step: a line in metrics.jsonl, a line for people, scalars and a table in W&B."""
        say(step_line(step, num_steps=self._num_steps, metrics=metrics))
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        self._metrics.flush()
        self._wandb.log({"step": step, **metrics}, table=[asdict(row) for row in dialogues])

    def log_sft(self, sft_step: int, *, metrics: Mapping[str, float]) -> None:
        """One optimizer step of SFT, on its own axis in W&B."""
        renamed = {key.replace("learner/", "sft/", 1): value for key, value in metrics.items()}
        self._wandb.log({"sft/step": sft_step, **renamed})

    def log_evaluation(self, rows: Sequence[EvaluationRow], *, step: int) -> None:
        """Scores of one evaluation; `step` is the number of GRPO steps behind the policy."""
        place = "evaluation" if rows[0].split == "test" else rows[0].split
        scores = {f"{place}/{row.gym}/score": row.score for row in rows}
        turns = {f"{place}/{row.gym}/turns": row.turns for row in rows}
        self._wandb.log({"step": step, **scores, **turns})

    def close(self) -> None:
        self._metrics.close()
        self._wandb.close()


def _cut_metrics(folder: RunFolder, *, resume_step: int) -> None:
    """Drops lines of later steps, and a last line that a crash left half written."""
    if not folder.metrics.exists():
        return
    kept: list[str] = []
    for line in folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > resume_step:
            break
        kept.append(line)
    write_whole(folder.metrics, "".join(kept))
