"""Check of an OpenAI-compatible endpoint that is the policy or the judge: URL, API key and model name.

Imports neither the client library nor Ray.
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
"""Maximum tokens of a turn, reasoning included, as in the released evaluation."""
MAX_NAMES_SHOWN = 8


def is_base_url(policy: str) -> bool:
    return policy.startswith(("http://", "https://"))


def endpoint_of(
    url: str, *, model: str | None, api_key_env: str | None, temperature: float, timeout_s: float
) -> ChatConfig:
    """Config of an endpoint as a policy. Raises `BadInput` if it cannot be used, if `model` is None and there
    are several models, or if the named key is not set. No error text contains the key."""
    key_env = DEFAULT_KEY_ENV if api_key_env is None else api_key_env
    if api_key_env is None and not os.environ.get(key_env, "").strip():
        key_env = ""  # local endpoints need none; others will refuse
    settings = {"base_url": url, "model": model or "", "api_key_env": key_env, "temperature": temperature}
    try:
        config = ChatConfig(**settings, timeout_s=timeout_s, max_tokens=MAX_TOKENS)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadInput(f"--policy: {reason}") from None
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise BadInput(
            # The name is not repeated: it may be a key given by mistake.
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
            "set an empty api_key_env if none is needed"
        )
    _ask_models(config.base_url, key=key, option=f"{section}.base_url", key_option=f"{section}.api_key_env")


def _only(models: list[str], *, url: str) -> str:
    if len(models) != 1:
        shown = ", ".join(models[:MAX_NAMES_SHOWN]) + (", ..." if len(models) > MAX_NAMES_SHOWN else "")
        has = f"has {len(models)} models ({shown})" if models else "does not list its models"
        raise BadInput(f"--model: missing, and {url} {has}: give --model NAME")
    return models[0]


def _ask_models(url: str, *, key: str, option: str, key_option: str) -> list[str]:
    """Names listed by GET /models; empty if the endpoint has no such list. Raises `BadInput`, which names
    `option` or `key_option`, if the endpoint is unreachable or refuses the key."""
    request = urllib.request.Request(f"{url}/models")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
            body: Any = load_json(answer.read(MAX_BODY_BYTES + 1).decode(), max_chars=MAX_BODY_BYTES)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise BadInput(
                f"{option}={url}: refuses the key (status {error.code}): give the name of its variable "
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
