"""Check of a policy: the name of a scripted one, a model folder with a chat template, or a hub name.

Reads the files directly, since loading a tokenizer takes seconds.
"""

import os
import queue
import re
import threading
import urllib.request
from pathlib import Path

from cluster.config.recipe import BadInput, nearest
from cluster.preflight.chat_template import check_template
from cluster.preflight.model_folder import check_model_folder

SCRIPTED_POLICIES = ("expert", "hasty", "random", "silent")
HUB_TIMEOUT_S = 1.5


def check_model(
    path: str, *, key: str, max_model_len: int | None = None, needs_chat_template: bool = True
) -> None:
    """Checks that a folder contains a whole causal LM, and if needed a chat template that can hold a dialogue
    and positions for `max_model_len` tokens. A hub name is only checked when it is loaded."""
    if is_hub_name(path):
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise BadInput(f"{key}={path!r}: no such folder: give a model folder, or a hub name as ORG/NAME")
    if not (folder / "config.json").is_file():
        raise BadInput(f"{key}={path!r}: no config.json there: give the folder of the model")
    if needs_chat_template:
        check_template(folder, key=key)
    check_model_folder(folder, key=key, max_model_len=max_model_len)


def is_hub_name(path: str) -> bool:
    """Whether it has the form ORG/NAME and neither ORG/NAME nor ORG is a local folder."""
    return (
        bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path))
        and not Path(path).is_dir()
        and not Path(path).parent.is_dir()
    )


def check_hub(path: str | None, *, key: str) -> None:
    """Checks that a hub name is in the local cache or on the hub.

    `userrl check` skips this, so that it works without a network.
    """
    if path is None or not is_hub_name(path):
        return
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    if (cache / f"models--{path.replace('/', '--')}").is_dir():
        return
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    # In a thread, since a DNS lookup has no timeout.
    threading.Thread(target=lambda: answers.put(_ask_hub(path)), daemon=True).start()
    try:
        answer = answers.get(timeout=HUB_TIMEOUT_S)
    except queue.Empty:
        answer = f"no answer within {HUB_TIMEOUT_S:g} s"
    if answer:
        raise BadInput(
            f"{key}={path!r}: no such folder, and not available from the hub ({answer}): correct it"
        )


def _ask_hub(name: str) -> str:
    """Empty if the hub has the model, else the reason."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(f"{endpoint}/{name}/resolve/main/config.json", method="HEAD")
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()
    except OSError as error:  # includes HTTPError and URLError
        return str(error)
    return ""


def check_policy(name: str) -> None:
    """Checks that it is a scripted policy's name, a model folder or a hub name."""
    if name in SCRIPTED_POLICIES or is_hub_name(name):
        return
    if not Path(name).expanduser().exists() and "/" not in name:
        raise BadInput(
            f"--policy={name!r}: unknown policy: did you mean {nearest(name, SCRIPTED_POLICIES)}? "
            f"Known: {', '.join(SCRIPTED_POLICIES)}, or a model folder"
        )
    check_model(name, key="--policy")
