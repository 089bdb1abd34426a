"""Choice of W&B's mode for a run: online, offline or disabled."""

import netrc
import os
from pathlib import Path

DEFAULT_URL = "https://api.wandb.ai"


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
    host = os.environ.get("WANDB_BASE_URL", DEFAULT_URL).split("//")[-1].split("/")[0].split(":")[0]
    try:  # RuntimeError: no home folder
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, RuntimeError, UnicodeError, netrc.NetrcParseError):
        return False
