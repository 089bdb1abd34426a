"""Parser of the tool calls in a completion (Qwen3's form). Takes time in proportion to the text, whatever it
holds.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from simulators.input_limits import LONE_SURROGATE, load_json
from simulators.message import CHOICES, TOOL_NAME, Action, Message, ToolCall

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
THOUGHT_END = "</think>"
MAX_CALL_CHARS = 100_000
"""Of a call as it is written. A longer one is no call."""


def parse_tool_call(text: str) -> Action | None:
    """The first tool call after the thought; None unless it is JSON of the gyms' tool."""
    found = next(call_texts(_after_thought(text)), None)
    call = None if found is None else _load(found)
    return None if call is None else to_action(call.get("name"), call.get("arguments"))


def to_action(name: object, arguments: object) -> Action | None:
    """A call as an action; None if it does not fit the schema of the gyms' tool."""
    if name != TOOL_NAME or not isinstance(arguments, Mapping):
        return None
    choice, content = arguments.get("choice"), arguments.get("content")
    if choice not in CHOICES or not isinstance(content, str) or LONE_SURROGATE.search(content):
        return None
    return Action(choice=choice, content=content)


def read_completion(text: str) -> Message:
    """The completion as a message for the chat template, whatever tools it calls.

    A call of the gyms' tool is read as in a rollout: the first one alone. Calls of other tools are read if
    all of them are JSON objects with a name and arguments; else the text is only text."""
    action = parse_tool_call(text)
    if action is not None:
        return Message(role="assistant", content=text_before_call(text), action=action)
    calls = _parse_calls(text)
    return Message(role="assistant", content=text_before_call(text) if calls else text, calls=calls)


def text_before_call(text: str) -> str:
    """The completion without its tool calls."""
    return text.partition(CALL_BEGIN)[0].strip()


def call_texts(text: str) -> Iterator[str]:
    """The `{...}` of each call, in order: from a brace right after `<tool_call>` to the first one right
    before a `</tool_call>`, apart from white space. What stands between them is not parsed.

    Example: `list(call_texts('<tool_call> {"name": "a"} </tool_call>'))` is `['{"name": "a"}']`.
    """
    at = 0
    while (begin := text.find(CALL_BEGIN, at)) >= 0:
        at = begin + len(CALL_BEGIN)
        first = _skip_space(text, at)
        if not text.startswith("{", first):
            continue
        end = last = first
        while (end := text.find(CALL_END, end)) >= 0:
            last = _before_space(text, end)
            if last - 1 > first and text[last - 1] == "}":
                break
            end += len(CALL_END)
        if end < 0:
            return  # no later call ends either
        yield text[first:last]
        at = end + len(CALL_END)


def _after_thought(text: str) -> str:
    _, thought_ended, rest = text.partition(THOUGHT_END)
    return rest if thought_ended else text


def _parse_calls(text: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for found in call_texts(_after_thought(text)):
        call = _load(found) or {}
        name, arguments = call.get("name"), call.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return ()
        calls.append(ToolCall(name=name, arguments=arguments))
    return tuple(calls)


def _load(call: str) -> dict[str, Any] | None:
    """The call's JSON object; None if it is no JSON, too long or too deep."""
    try:
        return load_json(call, max_chars=MAX_CALL_CHARS)
    except ValueError:
        return None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _before_space(text: str, end: int) -> int:
    while end and text[end - 1].isspace():
        end -= 1
    return end
