"""The run folder: its paths, its state (fresh, stopped, finished) and its checkpoints."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.run_folder.atomic_files import OLD, replace_folder, without_old, write_whole

RunState = Literal["fresh", "stopped", "finished"]
SCORE_FILE = "score.json"
LEARNER_FOLDER = "learner"
"""The learners' part of a checkpoint."""
STATE_FILE = "driver.json"
"""The driver's part of a checkpoint."""
RUNS = Path("runs")
"""Default folder of all runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestCheckpoint:
    """The best checkpoint by score."""

    path: Path
    step: int
    """GRPO steps behind the policy."""
    score: float
    """Macro average over the trained gyms."""
    split: str
    """Split of the tasks it was scored on."""


class RunFolder:
    """`runs/<name>/`. Nothing is written before `create`."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        """The resolved recipe."""
        self.metrics = path / "metrics.jsonl"
        """One JSON object per step."""
        self.evaluation = path / "evaluation.json"
        """Scores on test tasks."""
        self.validation = path / "validation.json"
        """Scores on validation tasks, which choose the best checkpoint; disjoint from test tasks."""
        self.trajectories = path / "trajectories"
        """Parquet files."""
        self.demonstrations = path / "demonstrations"
        """Dialogues of the experts for SFT: Parquet files."""
        self.journal = path / "journal"
        """Write-ahead log of the buffer since the oldest of the newest checkpoints: docs/resume.md."""
        self.checkpoints = path / "checkpoints"
        """`step-00010/`: complete, since it gets this name last. `best-00010/`: the one with the best score
        on validation tasks."""
        self.policy = path / "policy"
        """The untrained policy, if this run created it."""
        self.model = path / "model"
        """The trained policy, in the form that transformers and vLLM load."""
        self.best_model = path / "best_model"
        """The policy of the best checkpoint, in the same form."""
        self.reference = path / "reference"
        """The policy at the start of GRPO, if the recipe has a KL term; rewritten whenever GRPO starts."""
        self.reward_curve = path / "reward_curve.png"
        self.wandb = path / "wandb"
        self.scale = path / "scale.json"
        """Sizes requested by `userrl scale`; the driver writes its answer to the next file."""
        self.scale_answer = path / "scale-answer.json"
        self.scrape_targets = path / "prometheus.json"
        """Addresses of the metrics endpoints of all nodes while the run is active: docs/metrics.md."""
        self.status = path / "status.json"
        """Current status of the driver."""
        self.log = path / "log.jsonl"
        """Every line that drivers of this run logged."""
        self.error_log = path / "error.log"
        """Traceback of the last failure."""

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """The folder that a config names."""
        return cls(Path(config.run.folder) / config.run.name)

    def create(self, config: RunConfig) -> None:
        """Makes the folders and writes the resolved recipe. Raises `BadInput` if they cannot be written."""
        self._make(self.path, self.trajectories, self.checkpoints, self.wandb)
        write_whole(self.config, config.to_toml())

    def _make(self, *folders: Path) -> None:
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be created ({error.strerror}): give another folder with --run.folder"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and locks it for this process. Raises `BadInput` if another process has the
        lock."""
        self._make(self.path)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(
                    f"{self.path}: another process trains here: stop it or give --run NAME"
                ) from None
            yield

    @property
    def is_running(self) -> bool:
        """Whether a process has locked the folder."""
        try:
            with (self.path / ".lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def state(self, *, num_steps: int) -> RunState:
        """`finished` once all `num_steps` steps are done, the models are written and GRPO is evaluated."""
        if not self.config.exists():
            return "fresh"
        models = [self.model, *([self.best_model] if self.best else [])]
        written = all((model / "config.json").exists() for model in models)
        done = (self.latest_step or 0) >= num_steps and written
        return "finished" if done and "grpo" in self._evaluated_stages() else "stopped"

    def _evaluated_stages(self) -> set[str]:
        if not self.evaluation.exists():
            return set()
        return {row["stage"] for row in json.loads(self.evaluation.read_text())["rows"]}

    def checkpoint(self, step: int) -> Path:
        return self._complete("step").get(step, self.checkpoints / f"step-{step:05d}")

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        return max(self._complete("step"), default=None)

    @property
    def newest_checkpoints(self) -> list[Path]:
        """All complete checkpoints except the best, by step."""
        return [path for _, path in sorted(self._complete("step").items())]

    @property
    def cold_started(self) -> bool:
        """Whether the newest complete checkpoint was written after SFT."""
        return bool(self._newest_state().get("cold_started"))

    @property
    def resume_point(self) -> str:
        """Where a restart would resume, in words; changes whenever the run has progressed."""
        if state := self._newest_state():
            return f"step {self.latest_step}" if self.cold_started else f"SFT step {state['num_sft_steps']}"
        firsts = {path.name.partition("-")[0] for path in self.demonstrations.glob("*.parquet")}
        return f"demonstrations, file {len(firsts)}" if firsts else "its beginning"

    def _newest_state(self) -> dict[str, Any]:
        """The driver's part of the newest complete checkpoint; empty if there is none."""
        path = self.checkpoint(self.latest_step or 0) / STATE_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write a checkpoint into. Deletes unfinished ones."""
        self.clear_partial()
        partial = self.checkpoints / f"partial-{step:05d}"
        partial.mkdir(parents=True)
        return partial

    def complete_checkpoint(self, step: int) -> Path:
        """Gives the folder of `begin_checkpoint` its final name."""
        final = self.checkpoints / f"step-{step:05d}"
        replace_folder(final, self.checkpoints / f"partial-{step:05d}")
        return final

    def keep_newest(self, count: int, *, and_step: int) -> None:
        """Deletes all complete checkpoints but the newest ones and that of step `and_step`."""
        for step, old in sorted(self._complete("step").items())[:-count]:
            if step != and_step:
                self._delete(old)

    def clear_partial(self) -> None:
        """Deletes unfinished checkpoints and replaced ones."""
        replaced = (old for old in self.checkpoints.glob(f"*{OLD}") if without_old(old).exists())
        for leftover in (*self.checkpoints.glob("partial-*"), *replaced):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def best(self) -> BestCheckpoint | None:
        """The complete checkpoint with the best score on validation tasks; None if none was scored."""
        scored = [
            BestCheckpoint(path=path, **json.loads((path / SCORE_FILE).read_text(encoding="utf-8")))
            for path in self._complete("best").values()
        ]
        return max(scored, key=lambda best: (best.score, -best.step), default=None)

    def is_best(self, step: int) -> bool:
        """Whether the checkpoint of `step` is the best one: both are the same files."""
        best, own = self.best, self.checkpoint(step) / STATE_FILE
        return best is not None and own.exists() and own.samefile(best.path / STATE_FILE)

    def keep_best(self, step: int, *, score: float) -> BestCheckpoint:
        """Keeps the complete checkpoint of `step` as the best, even when it is no longer among the newest."""
        before, final = list(self.checkpoints.glob("best-*")), self.checkpoints / f"best-{step:05d}"
        partial = self.checkpoints / f"partial-best-{step:05d}"
        shutil.copytree(self.checkpoint(step), partial, copy_function=_link)
        write_whole(partial / SCORE_FILE, json.dumps({"step": step, "score": score, "split": "validation"}))
        replace_folder(final, partial)
        for old in before:
            if old != final:
                self._delete(old)
        return BestCheckpoint(path=final, step=step, score=score, split="validation")

    def _delete(self, folder: Path) -> None:
        """Renames it first, since a half-deleted checkpoint must not look complete."""
        nameless = folder.with_name(f"partial-{folder.name}")
        folder.rename(nameless)
        shutil.rmtree(nameless)

    def _complete(self, kind: str) -> dict[int, Path]:
        """Complete checkpoints by step; the old one if a crash came between the two renames."""
        found: dict[int, Path] = {}
        for path in sorted(self.checkpoints.glob(f"{kind}-*"), reverse=True):  # plain names after old ones
            step = without_old(path).name.removeprefix(f"{kind}-")
            if step.isdecimal():
                found[int(step)] = path
        return found


def find_run(path: Path) -> RunFolder:
    """The run folder at `path`, or of that name in runs/: one with a recipe, or one whose driver is starting.
    Raises `BadInput` if there is none."""
    for folder in map(RunFolder, (path, RUNS / path)):
        if folder.config.exists() or folder.status.exists():
            return folder
    raise BadInput(f"{path}: no run there: give a run folder such as runs/NAME, or its name in runs/")


def _link(source: str, target: str) -> None:
    """Hard link, or a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
