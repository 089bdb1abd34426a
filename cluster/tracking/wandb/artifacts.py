"""W&B artifacts of a run's inputs and outputs (lineage). Models and checkpoints are referenced by path; only
small files are copied.

Copies are kept in `wandb/lineage/` under a name with their hash: an offline run may be synced after the
original files have changed.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.config.run_config import RunConfig
from cluster.preflight.policy import is_hub_name
from cluster.run_folder.code_snapshot import ROOMS, write_rooms
from cluster.run_folder.paths import RunFolder
from cluster.tracking.wandb.internals import publish

MOST_COPIED_BYTES = 64 * 2**20
"""A model up to this size is copied to W&B; a larger one is a reference."""


class ArtifactLineage:
    """The artifacts of one W&B run."""

    def __init__(self, run: Any, *, folder: RunFolder, config: RunConfig):
        self._run = run
        self._folder = folder
        self._config = config
        self._name = config.run.name
        self._kept = folder.wandb / "lineage"
        self._logged_checkpoints: set[Path] = set()

    def inputs(self) -> None:
        """Logs code, recipe, tasks and the initial policy."""
        self._kept.mkdir(parents=True, exist_ok=True)
        partial = self._kept / "code.partial"
        write_rooms(partial)
        code = self._keep(partial.read_bytes(), "code.zip")
        partial.unlink()
        self._use("userrl-code", "code", files=[code], metadata={"sha256": _sha256(code), "rooms": ROOMS})
        recipe = self._keep(self._folder.config.read_bytes(), "config.toml")
        self._use(f"config-{self._name}", "config", files=[recipe])
        tasks = task_facts(self._config)
        data = {gym: Path(path).expanduser().resolve() for gym, path in self._config.gyms.data.items()}
        file = self._keep(json.dumps(tasks, indent=2).encode(), "tasks.json")
        self._use("tasks", "dataset", files=[file], references=data, metadata=tasks)
        path = self._config.policy.path
        if path is not None and is_hub_name(path):
            self._use(_plain(f"policy-{path}"), "model", files=[], metadata={"hub": path})
            return
        policy = self._folder.policy if path is None else Path(path).expanduser()
        if (policy / "config.json").exists():
            self._model(f"policy-{self._name if path is None else policy.name}", policy, is_input=True)

    def checkpoints(self) -> None:
        """Logs checkpoints completed since the last call, by reference."""
        best = self._folder.best
        for path in (*self._folder.newest_checkpoints, *([best.path] if best else [])):
            if path in self._logged_checkpoints:
                continue
            self._logged_checkpoints.add(path)
            score = {"score": best.score, "split": best.split} if best and path == best.path else {}
            aliases = ["latest", path.name, *(["best"] if score else [])]
            with suppress(FileNotFoundError, NotADirectoryError):  # deleted meanwhile
                self._log(
                    f"checkpoint-{self._name}",
                    "checkpoint",
                    references={path.name: path.resolve(strict=True)},
                    metadata={"path": str(path.resolve()), **score},
                    aliases=aliases,
                )

    def outputs(self) -> None:
        """Logs the trained policies, metrics, scores and trajectories of a finished run."""
        self.checkpoints()
        if not (self._folder.model / "config.json").exists():
            return
        for name, model in (("model", self._folder.model), ("best-model", self._folder.best_model)):
            if (model / "config.json").exists():
                self._model(f"{name}-{self._name}", model, is_input=False)
        logs = (self._folder.metrics, self._folder.evaluation, self._folder.validation)
        files = [self._keep(path.read_bytes(), path.name) for path in logs if path.exists()]
        self._log(f"results-{self._name}", "results", files=files)
        self._log(
            f"trajectories-{self._name}",
            "dataset",
            references={"trajectories": self._folder.trajectories.resolve()},
        )

    def _model(self, name: str, model: Path, *, is_input: bool) -> None:
        files = sorted(path for path in model.iterdir() if path.is_file())
        is_small = sum(path.stat().st_size for path in files) <= MOST_COPIED_BYTES
        send = self._use if is_input else self._log
        facts = {"path": str(model.resolve())}
        if is_small:
            send(_plain(name), "model", files=files, metadata=facts)
        else:
            send(_plain(name), "model", references={model.name: model.resolve()}, metadata=facts)

    def _use(self, name: str, type_: str, **content: Any) -> None:
        """Logs an input of the run."""
        publish(self._run, self._artifact(name, type_, **content), is_input=True)

    def _log(self, name: str, type_: str, *, aliases: list[str] | None = None, **content: Any) -> None:
        """Logs an output of the run."""
        publish(self._run, self._artifact(name, type_, **content), aliases=aliases)

    def _artifact(
        self,
        name: str,
        type_: str,
        *,
        files: list[Path] | None = None,
        references: Mapping[str, Path] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Any:
        import wandb

        artifact = wandb.Artifact(_plain(name), type=type_, metadata=dict(metadata or {}))
        for path in files or []:
            artifact.add_file(str(path.resolve()), name=path.name, policy="immutable")
        for part, path in (references or {}).items():
            artifact.add_reference(path.as_uri(), name=part, checksum=False)
        return artifact

    def _keep(self, content: bytes, name: str) -> Path:
        """A copy of the content in the run folder, named by its hash."""
        stem, _, ending = name.partition(".")
        path = self._kept / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{ending}"
        if not path.exists():
            path.write_bytes(content)
        return path


def task_facts(config: RunConfig) -> dict[str, Any]:
    """Everything that determines which tasks are drawn, and in which order."""
    return {
        "gyms": config.gyms.model_dump(mode="json"),
        "seed": config.run.seed,
        "personas": config.simulator.personas,
        "test_tasks_per_gym": config.evaluation.tasks_per_gym,
        "validation_tasks_per_gym": config.evaluation.validation_tasks_per_gym,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(name: str) -> str:
    """W&B allows letters, digits, `.`, `_` and `-`."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)[:120]
