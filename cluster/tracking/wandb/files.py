"""Reader of the offline W&B files in a run folder: one part for each process that tracked the run, read by
W&B's own reader."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

READ_TIMEOUT_S = 120.0
SYNCED = ".wandb.synced"
"""Instead of `.wandb`: W&B's own mark of what `wandb sync` need not send."""


def run_id(folder: Path, *, anew: bool = False) -> str:
    """The run's id in W&B, kept in its folder, so that a resumed run continues the same W&B run."""
    path = folder / "run_id"
    if anew or not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def parts_of(folder: Path, *, run_id: str | None = None) -> list[Path]:
    """The `.wandb` files that W&B wrote to this folder for the run, online and offline ones, by name; None:
    for any."""
    found = sorted(folder.glob("*run-*/run-*.wandb"), key=lambda path: path.parent.name.partition("run-")[2])
    return [path for path in found if run_id in (None, path.stem.removeprefix("run-"))]


def read_part(path: Path) -> list[dict[str, Any]]:
    """All records that are whole, as `wandb leet inspect --json` prints them. Raises OSError, ValueError or
    subprocess.SubprocessError where it cannot read the file."""
    quiet = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    finished = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)],
        capture_output=True,
        check=True,
        env={**os.environ, **quiet},
        stdin=subprocess.DEVNULL,
        timeout=READ_TIMEOUT_S,
    )
    return [json.loads(line) for line in finished.stdout.splitlines()]


def num_rows(parts: list[Path]) -> int:
    """Rows of the run's history that these files have: the number of the next one."""
    steps = [
        record["history"]["step"]["num"]
        for part in parts
        for record in read_part(part)
        if record["type"] == "history"
    ]
    return max(steps, default=-1) + 1


def mark_synced(parts: list[Path]) -> None:
    """`wandb sync` leaves them out from now on: their rows went another way."""
    for part in parts:
        part.with_suffix(SYNCED).touch()
