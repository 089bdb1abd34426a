"""Ray's authentication token of a cluster: finds it, or creates a private one for a local cluster. Ray itself
checks it."""

import os
import secrets
import stat
from pathlib import Path

from cluster.config.recipe import BadInput

TOKEN, TOKEN_PATH, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
NUM_BYTES = 32
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def default_path() -> Path:
    """Ray's default token file."""
    return Path.home() / ".ray" / "auth_token"


def find_token() -> str | None:
    """This process's token, searched in Ray's order (its page "Ray token authentication"): the variable
    RAY_AUTH_TOKEN, the file named by RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token. None if there is none.

    Raises `BadInput` if a named file cannot be read or is empty.
    """
    token = os.environ.get(TOKEN, "").strip()
    if token:
        return token
    named = os.environ.get(TOKEN_PATH)
    path = Path(named).expanduser() if named else default_path()
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise BadInput(
                f"{TOKEN_PATH}={named}: no token can be read there ({error}): give its file"
            ) from None
        return None
    if named and not token:
        raise BadInput(f"{TOKEN_PATH}={named}: the file is empty: it must contain the cluster's token")
    return token or None


def provide_token() -> None:
    """Ensures that a local Ray finds a token that is readable by this user alone.

    A token file written by Ray would be world-readable. If the home folder is not writable, the token is kept
    in this process's environment only. No effect if RAY_AUTH_MODE turns tokens off."""
    if os.environ.get(MODE, "token").lower() != "token":
        return
    path = default_path()
    if find_token() is None:
        _write(path, secrets.token_hex(NUM_BYTES))
    elif not (os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH)) and path.stat().st_mode & OTHERS:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def _write(path: Path, token: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # opening an empty file would keep its mode
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(token)
    except OSError:
        os.environ[TOKEN] = token
