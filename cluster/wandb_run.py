"""W&B at arm's length: its calls run on one thread, so that W&B slow, down or broken never stops a run."""

import contextlib
import netrc
import os
import queue
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.console import say

QUEUE_STEPS = 1000
"""Steps that may wait for W&B; more are dropped, and said so."""
CLOSE_TIMEOUT_S = 60.0
INIT_TIMEOUT_S = 30.0

Entry = tuple[Mapping[str, float], Sequence[Mapping[str, Any]]]


class WandbRun:
    """One W&B run in the run folder; the same run again after a resume."""

    def __init__(self, folder: Path, *, name: str, config: RunConfig):
        self._folder = folder
        self._name = name
        self._config = config
        self._warned = False
        self._entries: queue.Queue[Entry | None] = queue.Queue(maxsize=QUEUE_STEPS)
        self.mode = resolve_mode(config.tracking.mode)
        """online, offline or disabled."""
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, scalars: Mapping[str, float], *, table: Sequence[Mapping[str, Any]] = ()) -> None:
        """Hands one entry to the thread; returns at once."""
        try:
            self._entries.put_nowait((dict(scalars), list(table)))
        except queue.Full:
            self._warn("it is too slow, some steps are not shown there")

    def close(self) -> None:
        """Waits for W&B to write what it has, for a limited time."""
        with contextlib.suppress(queue.Full):
            self._entries.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(timeout=CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._warn(f"it did not finish within {CLOSE_TIMEOUT_S:g} s; `wandb sync` can send the rest")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            say(f"warning: W&B: {reason}; the run goes on, and metrics.jsonl has every number")

    def _work(self) -> None:
        """Consumes entries, waits for W&B, produces its files. A fault of W&B ends this work, not the run."""
        run = None
        if self.mode != "disabled":
            try:
                run = self._init()
            except Exception as error:  # W&B raises many kinds; none of them may reach the run.
                self._warn(f"it did not start ({_first_line(error)})")
        while (entry := self._entries.get()) is not None:
            if run is None:
                continue
            try:
                _log(run, *entry)
            except Exception as error:
                self._warn(f"it stopped taking data ({_first_line(error)})")
                run = None
        if run is not None:
            try:
                run.finish()
            except Exception as error:
                self._warn(f"it did not finish ({_first_line(error)})")

    def _init(self) -> Any:
        import wandb  # Half a second, spent here and not at the start of every command.

        settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off")
        run = wandb.init(
            project=self._config.tracking.project,
            name=self._name,
            id=self._run_id(),
            resume="allow",
            dir=self._folder,
            mode="online" if self.mode == "online" else "offline",
            config=self._config.model_dump(),
            settings=settings,
        )
        run.define_metric("step")
        run.define_metric("sft/step")
        run.define_metric("*", step_metric="step")
        run.define_metric("sft/*", step_metric="sft/step")
        return run

    def _run_id(self) -> str:
        """Kept in the folder, so that a resumed run goes on in the same W&B run."""
        path = self._folder / "wandb" / "run_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text()


def resolve_mode(mode: str) -> str:
    """auto: WANDB_MODE if set, else online where a key is found and offline where none is."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = (
        os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    )
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _log(run: Any, scalars: Mapping[str, float], table: Sequence[Mapping[str, Any]]) -> None:
    entry: dict[str, Any] = dict(scalars)
    if table:
        import wandb

        entry["rollout/dialogues"] = wandb.Table(
            columns=list(table[0]), data=[list(row.values()) for row in table]
        )
    run.log(entry)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
