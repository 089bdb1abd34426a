"""The run folder: names every path in it, knows how far its run came, and makes files whole or not at all."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cluster.config import RunConfig
from cluster.recipe import BadInput

RunState = Literal["fresh", "stopped", "finished"]


class RunFolder:
    """`runs/<name>/`. Nothing is written before `create`."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        """The resolved recipe."""
        self.metrics = path / "metrics.jsonl"
        """One object a step."""
        self.evaluation = path / "evaluation.json"
        self.trajectories = path / "trajectories"
        """Parquet files."""
        self.checkpoints = path / "checkpoints"
        """`step-00010/`: complete if its name says so, since it gets the name last."""
        self.policy = path / "policy"
        """The untrained policy, where this run made it."""
        self.model = path / "model"
        """The trained policy: a folder that transformers and vLLM load."""
        self.reward_curve = path / "reward_curve.png"
        self.wandb = path / "wandb"
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

    def state(self, *, num_steps: int) -> RunState:
        """`finished` once GRPO is evaluated, its model written and no step of `num_steps` is missing."""
        if not self.config.exists():
            return "fresh"
        done = (self.latest_step or 0) >= num_steps and (self.model / "config.json").exists()
        return "finished" if done and "grpo" in self._evaluated_stages() else "stopped"

    def _evaluated_stages(self) -> set[str]:
        if not self.evaluation.exists():
            return set()
        return {row["stage"] for row in json.loads(self.evaluation.read_text())["rows"]}

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:05d}"

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step; None where there is none."""
        steps = self._steps()
        return steps[-1] if steps else None

    def save_checkpoint(self, step: int, *, write: Callable[[Path], object], keep: int) -> Path:
        """Has `write` fill a folder, names it when it is complete, then deletes all but the newest `keep`."""
        final, partial = self.checkpoint(step), self.checkpoints / f"partial-{step:05d}"
        for leftover in self.checkpoints.glob("partial-*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        write(partial)
        if final.exists():
            final.rename(self.checkpoints / f"partial-{step:05d}-old")
        partial.rename(final)
        shutil.rmtree(self.checkpoints / f"partial-{step:05d}-old", ignore_errors=True)
        for old in self._steps()[:-keep]:
            shutil.rmtree(self.checkpoint(old))
        return final

    def _steps(self) -> list[int]:
        names = (folder.name.removeprefix("step-") for folder in self.checkpoints.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, meets the old text or the new one and never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
