"""The run folder: all its paths, its state (fresh, stopped, finished), and atomic writes of files and
folders."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig

RunState = Literal["fresh", "stopped", "finished"]
SCORE_FILE = "score.json"
LEARNER_FOLDER = "learner"
"""The learners' part of a checkpoint."""
STATE_FILE = "driver.json"
"""The driver's part of a checkpoint."""
OLD = "-old"
"""Ends the name of what `replace_folder` is about to delete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestCheckpoint:
    """A checkpoint and the score that it was kept for."""

    path: Path
    step: int
    """GRPO steps behind the policy."""
    score: float
    """Macro average over the trained gyms."""
    split: str
    """The split of the tasks that it was scored on."""


class RunFolder:
    """`runs/<name>/`. Nothing is written before `create`."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        """The resolved recipe."""
        self.metrics = path / "metrics.jsonl"
        """One object a step."""
        self.evaluation = path / "evaluation.json"
        """Scores on test tasks."""
        self.validation = path / "validation.json"
        """Scores on validation tasks, by which the best checkpoint is chosen. No test task is among them."""
        self.trajectories = path / "trajectories"
        """Parquet files."""
        self.demonstrations = path / "demonstrations"
        """What the experts have played for SFT: Parquet files."""
        self.journal = path / "journal"
        """What came to the buffer since the oldest checkpoint among the newest: docs/resume.md."""
        self.checkpoints = path / "checkpoints"
        """`step-00010/`: complete if its name says so, since it gets the name last. `best-00010/`: the one
        with the best score on validation tasks."""
        self.policy = path / "policy"
        """The untrained policy, where this run made it."""
        self.model = path / "model"
        """The trained policy: a folder that transformers and vLLM load."""
        self.best_model = path / "best_model"
        """The policy of the best checkpoint, in the same form."""
        self.reference = path / "reference"
        """The policy at the start of GRPO, if the recipe has a KL: rewritten whenever GRPO starts."""
        self.reward_curve = path / "reward_curve.png"
        self.wandb = path / "wandb"
        self.scale = path / "scale.json"
        """Sizes requested by `userrl scale` during the run; the other file is the driver's."""
        self.scale_answer = path / "scale-answer.json"
        self.scrape_targets = path / "prometheus.json"
        """Addresses of the metrics endpoints of the run's nodes, while it runs: docs/metrics.md."""
        self.status = path / "status.json"
        """How far the driver is just now, in its own words."""
        self.log = path / "log.jsonl"
        """Every line that drivers of this run said."""
        self.error_log = path / "error.log"
        """The traceback of the last failure."""

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """The folder that a config names."""
        return cls(Path(config.run.folder) / config.run.name)

    def create(self, config: RunConfig) -> None:
        """Makes the folders and writes the resolved recipe. Raises `BadInput` where the disk refuses."""
        self._make(self.path, self.trajectories, self.checkpoints, self.wandb)
        write_whole(self.config, config.to_toml())

    def _make(self, *folders: Path) -> None:
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be made ({error.strerror}): give another place with --run.folder"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process. Raises `BadInput` where another one has it."""
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
        """Whether a process holds the folder, as `locked` does."""
        try:
            with (self.path / ".lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def state(self, *, num_steps: int) -> RunState:
        """`finished` once no step of `num_steps` is missing, the models are written and GRPO is evaluated."""
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
        """The newest complete checkpoint's step; None where there is none."""
        return max(self._complete("step"), default=None)

    @property
    def newest_checkpoints(self) -> list[Path]:
        """All complete checkpoints but the best, by step."""
        return [path for _, path in sorted(self._complete("step").items())]

    @property
    def cold_started(self) -> bool:
        """Whether the newest complete checkpoint has SFT behind it."""
        return bool(self._newest_state().get("cold_started"))

    @property
    def place(self) -> str:
        """Where a restart would resume, in words; changes whenever the run has progressed."""
        if state := self._newest_state():
            return f"step {self.latest_step}" if self.cold_started else f"SFT step {state['num_sft_steps']}"
        firsts = {path.name.partition("-")[0] for path in self.demonstrations.glob("*.parquet")}
        return f"demonstrations, file {len(firsts)}" if firsts else "its beginning"  # what failed comes again

    def _newest_state(self) -> dict[str, Any]:
        """The driver's part of the newest complete checkpoint; empty where there is none."""
        path = self.checkpoint(self.latest_step or 0) / STATE_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write a checkpoint into. Leftovers of unfinished ones go away."""
        self.clear_partial()
        partial = self.checkpoints / f"partial-{step:05d}"
        partial.mkdir(parents=True)
        return partial

    def complete_checkpoint(self, step: int) -> Path:
        """Names the folder of `begin_checkpoint`."""
        final = self.checkpoints / f"step-{step:05d}"
        replace_folder(final, self.checkpoints / f"partial-{step:05d}")
        return final

    def keep_newest(self, count: int, *, beside: int) -> None:
        """Deletes all but the newest complete checkpoints and that of step `beside`."""
        for step, old in sorted(self._complete("step").items())[:-count]:
            if step != beside:
                self._delete(old)

    def clear_partial(self) -> None:
        """Deletes what was begun and never named, and what something else has replaced."""
        replaced = (old for old in self.checkpoints.glob(f"*{OLD}") if _plain(old).exists())
        for leftover in (*self.checkpoints.glob("partial-*"), *replaced):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def best(self) -> BestCheckpoint | None:
        """The complete checkpoint with the best score on validation tasks; None where none was scored."""
        scored = [
            BestCheckpoint(path=path, **json.loads((path / SCORE_FILE).read_text(encoding="utf-8")))
            for path in self._complete("best").values()
        ]
        return max(scored, key=lambda best: (best.score, -best.step), default=None)

    def is_best(self, step: int) -> bool:
        """Whether the checkpoint of `step` is the best one, by its very files."""
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
        """Takes the name first: what is half deleted must not pass for whole."""
        nameless = folder.with_name(f"partial-{folder.name}")
        folder.rename(nameless)
        shutil.rmtree(nameless)

    def _complete(self, kind: str) -> dict[int, Path]:
        """Complete checkpoints by step; where a crash came between the two names, the old one."""
        found: dict[int, Path] = {}
        for path in sorted(self.checkpoints.glob(f"{kind}-*"), reverse=True):  # plain names after old ones
            step = _plain(path).name.removeprefix(f"{kind}-")
            if step.isdecimal():
                found[int(step)] = path
        return found


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, meets the old text or the new one and never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_folder(final: Path, write: Callable[[Path], None]) -> Path:
    """Has `write` fill a folder, which gets its name when it is whole."""
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    replace_folder(final, partial)
    return final


def replace_folder(final: Path, partial: Path) -> None:
    """Gives a whole folder its name, in place of what has it; after a crash one of the two has it, or the old
    one has it with `-old` behind."""
    old = final.with_name(f"{final.name}{OLD}")
    for path in (*partial.rglob("*"), partial):
        _to_disk(path)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    _to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _plain(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(OLD))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: str, target: str) -> None:
    """The same file under a second name, or its copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
