"""Validation of an endpoint's response: text, tool calls and token usage within limits, with the API key
removed."""

import json
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHARS_PER_TOKEN = 32
"""On average. A response with more than `max_tokens` of such tokens exceeded the limit and is cut off."""
MAX_NAME_CHARS = 200
"""Maximum length of the names of a model and a tool."""
MAX_TOOL_CALLS = 8
"""Further calls are ignored."""
MOST_TOKENS_REPORTED = 10_000_000
"""A larger reported usage is ignored."""
CHARS_PER_TOKEN = 4
"""Estimate for endpoints that do not report usage, so that budgets hold there, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointResponse:
    """One response, free of the key."""

    text: str
    """May be empty."""
    model: str
    """The endpoint's name of it; empty if missing."""
    is_cut: bool
    """It reached `max_tokens` before its end."""
    num_tokens: int
    """Tokens read and written."""
    tool_calls: tuple[tuple[str, str], ...]
    """(tool's name, arguments as the model wrote them) of each call."""


class UnreadableResponse(ValueError):
    """The response is no chat completion."""


def read_response(
    completion: object, *, max_tokens: int, num_chars_read: int, clean: Callable[[str], str]
) -> EndpointResponse:
    """Validates a chat completion. `num_chars_read`: the prompt's length; `clean` removes the key from a
    text. Raises `UnreadableResponse`."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise UnreadableResponse("the endpoint's reply is no chat completion")
    message = getattr(choices[0], "message", None)
    content = getattr(message, "content", None) or ""
    if message is None or not isinstance(content, str):
        raise UnreadableResponse("the endpoint's reply holds no message of text")
    most, model = MAX_CHARS_PER_TOKEN * max_tokens, getattr(completion, "model", None)
    text = clean(content)
    used = getattr(getattr(completion, "usage", None), "total_tokens", None)
    if not isinstance(used, int) or not 0 < used <= MOST_TOKENS_REPORTED:
        used = (num_chars_read + len(text[:most])) // CHARS_PER_TOKEN
    return EndpointResponse(
        text=text[:most],
        model=clean(model)[:MAX_NAME_CHARS] if isinstance(model, str) else "",
        is_cut=len(text) > most or getattr(choices[0], "finish_reason", None) == "length",
        num_tokens=used,
        tool_calls=_calls(getattr(message, "tool_calls", None), most=most, clean=clean),
    )


def _calls(called: object, *, most: int, clean: Callable[[str], str]) -> tuple[tuple[str, str], ...]:
    """(name, arguments) of the first tool calls; tolerates any malformed value."""
    listed = called[:MAX_TOOL_CALLS] if isinstance(called, list) else []
    functions = [getattr(call, "function", None) for call in listed]
    calls = [(getattr(one, "name", None), getattr(one, "arguments", None)) for one in functions]
    return tuple(
        (clean(name)[:MAX_NAME_CHARS], clean(_as_text(arguments))[:most])
        for name, arguments in calls
        if isinstance(name, str)
    )


def _as_text(arguments: object) -> str:
    """Arguments as text; empty if they are no JSON."""
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments)
    except (TypeError, ValueError, RecursionError):
        return ""
