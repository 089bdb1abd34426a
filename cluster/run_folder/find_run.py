"""Resolution of a run folder from a command-line argument."""

from pathlib import Path

from cluster.config.recipe import BadInput
from cluster.run_folder.paths import RunFolder

RUNS = Path("runs")
"""Where runs lie unless a recipe says otherwise."""


def find_run(path: Path) -> RunFolder:
    """The folder as given, or that name in runs/: one with a recipe, or one whose driver is just starting.
    Raises `BadInput` where there is none."""
    for folder in map(RunFolder, (path, RUNS / path)):
        if folder.config.exists() or folder.status.exists():
            return folder
    raise BadInput(f"{path}: no run there: give a run folder such as runs/NAME, or its name in runs/")
