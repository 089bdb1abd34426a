"""Command-line arguments to a validated config: short options stand for recipe keys."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from cluster.config.recipe import BadInput, apply_overrides, read_toml
from cluster.config.run_config import RunConfig, load
from cluster.run_folder.paths import RunFolder

AddCommand = Callable[..., argparse.ArgumentParser]
"""(name, function of the parsed arguments and the config, text=one line of help)."""


def config_of(arguments: argparse.Namespace, overrides: dict[str, str]) -> RunConfig:
    """The recipe or run folder, then dotted keys; short options are names for dotted keys."""
    short = {
        "run.name": "run",
        "run.seed": "seed",
        "gyms.difficulty": "difficulty",
        "evaluation.tasks_per_gym": "tasks",
        "gyms.preset": "preset",
        f"gyms.data.{getattr(arguments, 'gyms', '')}": "data",
    }
    for key, option in short.items():
        value = getattr(arguments, option, None)
        if value is not None:
            overrides[key] = value
    recipe = getattr(arguments, "recipe", None)
    if recipe is not None and recipe.is_dir():
        if not RunFolder(recipe).config.exists():
            raise BadInput(
                f"{recipe}: no config.toml there: give a recipe, or a run folder such as runs/NAME"
            )
        overrides = {"run.name": recipe.resolve().name, "run.folder": str(recipe.parent)} | overrides
        recipe = RunFolder(recipe).config
    if getattr(arguments, "gyms", "all") != "all":
        overrides = overrides | _only_gyms(arguments.gyms, recipe, overrides)
    return load(recipe, arguments.defaults | overrides)


def _only_gyms(names: str, recipe: Path | None, overrides: dict[str, str]) -> dict[str, str]:
    """The keys that leave these gyms; those of them that the recipe holds out stay held out, unless all
    are."""
    gyms = [name.strip() for name in names.split(",")]
    data = read_toml(recipe) if recipe else {}
    apply_overrides(data, overrides, model=RunConfig)
    table = data.get("gyms", {})
    held_out = [gym for gym in gyms if gym in table.get("held_out", ())]
    kept = [] if len(held_out) == len(gyms) else held_out
    files = {gym: path for gym, path in table.get("data", {}).items() if gym in gyms}
    return {
        "gyms.weights": "{" + ", ".join(f'"{gym}" = 1.0' for gym in gyms) + "}",
        "gyms.held_out": json.dumps(kept),
        "gyms.data": "{"
        + ", ".join(f"{json.dumps(g)} = {json.dumps(str(p))}" for g, p in files.items())
        + "}",
    }
