"""What the wandb package does not promise, read from version 0.31.0: how it chooses its mode, its files on
disk, its service process and private names. Check this file when wandb is upgraded."""

import json
import netrc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

DEFAULT_URL = "https://api.wandb.ai"
READ_TIMEOUT_S = 120.0
SYNCED = ".wandb.synced"
"""Suffix instead of `.wandb`: marks a file that `wandb sync` need not send."""
SERVICE = "wandb-core"
"""Name of its service process."""


def resolve_mode(mode: str) -> str:
    """online, offline or disabled. auto: WANDB_MODE if set, else online if a key is found, else offline."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", DEFAULT_URL).split("//")[-1].split("/")[0].split(":")[0]
    try:  # RuntimeError: no home folder
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, RuntimeError, UnicodeError, netrc.NetrcParseError):
        return False


def parts_of(folder: Path, *, run_id: str | None = None) -> list[Path]:
    """The `.wandb` files of a run in this folder, online and offline ones, by time; None: of any run. Each
    process that tracked the run has written one."""
    found = sorted(folder.glob("*run-*/run-*.wandb"), key=lambda path: path.parent.name.partition("run-")[2])
    return [path for path in found if run_id in (None, path.stem.removeprefix("run-"))]


def read_part(path: Path) -> list[dict[str, Any]]:
    """All complete records of a `.wandb` file. Raises OSError, ValueError or subprocess.SubprocessError if it
    cannot be read."""
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
    """Number of rows of the run's history in these files."""
    steps = [
        record["history"]["step"]["num"]
        for part in parts
        for record in read_part(part)
        if record["type"] == "history"
    ]
    return max(steps, default=-1) + 1


def mark_synced(parts: list[Path]) -> None:
    """Makes `wandb sync` skip these files: their rows are sent another way."""
    for part in parts:
        part.with_suffix(SYNCED).touch()


def publish(run: Any, artifact: Any, *, aliases: list[str] | None = None, is_input: bool = False) -> Any:
    """Hands an artifact to the service process, which writes it to the run's file and sends it; returns at
    once. The public `log_artifact` waits for the server first, and `use_artifact` refuses to work offline."""
    artifact.finalize()
    run._interface.publish_artifact(run, artifact, aliases or ["latest"], use_after_commit=is_input)
    return artifact


def kill_service() -> None:
    """Kills the service process of this process."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if SERVICE in process.name():
                process.kill()
