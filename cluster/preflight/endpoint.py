"""Check of an OpenAI-compatible endpoint that plays the policy or judges: URL, API key and model name, before
anything starts.

Light: no client library, no Ray.
"""

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cluster.config.recipe import BadInput
from simulators.input_limits import MAX_BODY_BYTES, load_json
from simulators.llm_client.client import ChatConfig

ASK_TIMEOUT_S = 5.0
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
MAX_TOKENS = 2048
"""Longest turn of an endpoint's model, reasoning included, as the released evaluation has it."""
MAX_NAMES_SHOWN = 8


def is_base_url(policy: str) -> bool:
    return policy.startswith(("http://", "https://"))


def endpoint_of(
    url: str, *, model: str | None, api_key_env: str | None, temperature: float, timeout_s: float
) -> ChatConfig:
    """The endpoint as a policy. Raises `BadInput` where it cannot be used, `model` is missing and not the
    only one, or the key that is named is not set. No text of it holds the key."""
    key_env = DEFAULT_KEY_ENV if api_key_env is None else api_key_env
    if api_key_env is None and not os.environ.get(key_env, "").strip():
        key_env = ""  # local endpoints want none; one that does will say so
    settings = {"base_url": url, "model": model or "", "api_key_env": key_env, "temperature": temperature}
    try:
        config = ChatConfig(**settings, timeout_s=timeout_s, max_tokens=MAX_TOKENS)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadInput(f"--policy: {reason}") from None
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise BadInput(
            # The name is not repeated: it may be a key that was given in its place.
            "--api-key-env: this environment variable is not set: export it, or give "
            '--api-key-env "" for an endpoint without a key'
        )
    models = _ask_models(config.base_url, key=key, option="--policy", key_option="--api-key-env")
    return config if model else config.model_copy(update={"model": _only(models, url=config.base_url)})


def check_endpoint(config: ChatConfig, *, section: str) -> None:
    """Raises `BadInput` if the API key of this section's endpoint is unset or refused, or the endpoint is
    unreachable."""
    key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
    if config.api_key_env and not key:
        raise BadInput(
            f"{section}: api_key_env={config.api_key_env!r} is not set: export the key under this name, or "
            "give an empty api_key_env where none is needed"
        )
    _ask_models(config.base_url, key=key, option=f"{section}.base_url", key_option=f"{section}.api_key_env")


def _only(models: list[str], *, url: str) -> str:
    if len(models) != 1:
        shown = ", ".join(models[:MAX_NAMES_SHOWN]) + (", ..." if len(models) > MAX_NAMES_SHOWN else "")
        has = f"has {len(models)} models ({shown})" if models else "does not say which models it has"
        raise BadInput(f"--model: missing, and {url} {has}: give --model NAME")
    return models[0]


def _ask_models(url: str, *, key: str, option: str, key_option: str) -> list[str]:
    """The names that GET /models lists; none where the endpoint has no such list. Raises `BadInput` where the
    endpoint is unreachable or the key is refused; `option` and `key_option` name the options they came
    from."""
    request = urllib.request.Request(f"{url}/models")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
            body: Any = load_json(answer.read(MAX_BODY_BYTES + 1).decode(), max_chars=MAX_BODY_BYTES)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise BadInput(
                f"{option}={url}: refuses the key (status {error.code}): name the variable that holds it "
                f"with {key_option}"
            ) from None
        return []
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise BadInput(
            f"{option}={url}: no answer within {ASK_TIMEOUT_S:g} s ({reason}): start the endpoint, or "
            "correct the URL, which ends with its version, as in http://127.0.0.1:8000/v1"
        ) from None
    except ValueError:
        return []
    entries = body.get("data", []) if isinstance(body, Mapping) else []
    return [str(entry["id"]) for entry in entries if isinstance(entry, Mapping) and "id" in entry]
