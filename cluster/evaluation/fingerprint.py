"""Fingerprint of an evaluation: every setting that affects its dialogues, as plain JSON. Finished dialogues
are reused, and numbers compared, only if fingerprints are equal."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import actors
import simulators
from cluster.config.run_config import RunConfig
from cluster.evaluation.request import EvaluationRequest
from simulators.gym_plugins import module_path

CODE = [Path(str(room.__file__)).parent for room in (simulators, actors)]


def settings_of(config: RunConfig, request: EvaluationRequest, *, policy_folder: str) -> dict[str, object]:
    """No secret is among them: an endpoint's key is only named."""
    people = config.simulator
    return {
        "policy": request.name,
        "policy_files": _state(Path(policy_folder).iterdir()) if request.kind == "folder" else None,
        "endpoint": request.endpoint.model_dump(mode="json") if request.endpoint else None,
        "gyms": config.gyms.evaluated,
        "simulators": {name: people.named(name).model_dump(mode="json") for name in request.simulators},
        "personas": people.personas,
        "web_search": people.web_search.model_dump(mode="json") if people.web_search else None,
        "split": request.split,
        "num_tasks": config.evaluation.tasks_per_gym,
        "num_trials": request.num_trials,
        "seed": config.run.seed,
        "difficulty": config.gyms.difficulty,
        "preset": config.gyms.preset,
        "constants": config.gyms.constants,
        "data": {gym: _state([path]) for gym, path in config.gyms.data.items()},
        "max_turns": config.rollout.max_turns,
        "max_completion_tokens": config.rollout.max_completion_tokens,
        "max_model_len": config.engine.max_model_len,
        "temperature": config.rollout.temperature,
        "code": _code(CODE + [module_path(module) for module in _plug_ins(config)]),
    }


def _plug_ins(config: RunConfig) -> list[str]:
    """Modules of gyms and users: those that dialogues depend on."""
    modules = config.plug_in_modules.items()
    return [module for key, module in modules if key.startswith(("gyms.", "simulator."))]


def _state(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of each file: another model in the same place is another policy."""
    states = {str(path): path.stat() for path in sorted(paths) if path.is_file()}
    return {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()}


def _code(places: Iterable[Path]) -> str:
    """A hash of the code that plays: dialogues of before it was changed are other dialogues."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(place).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
