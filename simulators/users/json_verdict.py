"""Parser of a model's verdict: extracts the one JSON object that fits a schema, or raises. Pure.

Lenient about wrapping (reasoning, code fences, text around the object), strict about the object. An ambiguous
text has no verdict: a wrong one would become a reward, while a missing one is requested again.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match

from simulators.input_limits import MAX_DEPTH, STRING, STRING_OR_BRACKET, depth_of

MAX_CHARS = 20_000
"""Longer texts are no verdicts."""
MAX_BRACKETS = 30
"""Maximum number of outermost brackets tried in one text, so that a flood of open ones costs little."""
REASONING = "think|thinking|thought|reasoning|reflection|scratchpad"
_CLOSING = re.compile(rf"</\s*(?:{REASONING})\s*>", re.IGNORECASE)
_OPENING = re.compile(rf"<\s*(?:{REASONING})\b[^<>]*>", re.IGNORECASE)
_STRING_OR_TRAILING_COMMA = re.compile(rf"({STRING})|,(?=\s*[}}\]])", re.DOTALL)
_BRACKET = re.compile(r"[\[{]")
_NOT_JSON = object()


class InvalidVerdict(ValueError):
    """The text holds no verdict, or more than one."""


def parse_verdict(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The object in `text` that fits `schema`. Raises `InvalidVerdict` if there is none or two differ.

    Example: `parse_verdict('<think>red, so yes</think> ```json\\n{"holds": true}\\n```', schema)` is
    `{"holds": True}`.
    """
    if len(text) > MAX_CHARS:
        raise InvalidVerdict(f"{len(text)} characters are too many for a verdict")
    answer = without_reasoning(text)
    found, end = _objects(answer)
    if has_open_reasoning(answer) and answer[end:].strip().strip("`").strip():
        # Reasoning that never closes quotes what it likes: only its very last word can be a verdict.
        raise InvalidVerdict("the reasoning does not end")
    validator = jsonschema.Draft202012Validator(schema)
    fitting = [value for value in found if validator.is_valid(value)]
    if not fitting:
        raise InvalidVerdict(_why(found, validator=validator, text=answer))
    if any(_canonical(value) != _canonical(fitting[0]) for value in fitting):
        raise InvalidVerdict("two different verdicts in one text")
    return fitting[0]


def without_reasoning(text: str) -> str:
    """The text after the last closing tag of reasoning.

    Never the text between two blocks: reasoning may quote the agent, closing tags and verdicts included.
    """
    return _CLOSING.split(text)[-1].strip()


def has_open_reasoning(text: str) -> bool:
    """Whether reasoning begins in the text and does not end."""
    return _OPENING.search(without_reasoning(text)) is not None


def _objects(text: str) -> tuple[list[dict[str, Any]], int]:
    """The outermost JSON objects of a text, and where the last one ends. Objects inside a list, or inside a
    broken object, are none."""
    found: list[dict[str, Any]] = []
    closes: dict[int, int | None] = {}
    at = end = 0
    for _ in range(MAX_BRACKETS):
        match = _BRACKET.search(text, at)
        if match is None:
            break
        if match.start() not in closes:
            closes |= _closes(text, match.start())
        span = closes[match.start()]
        value = _decode(text[match.start() : span]) if span is not None else _NOT_JSON
        if isinstance(value, dict):
            found.append(value)
            end = span or 0
        if span is not None and (match.group() == "{" or value is not _NOT_JSON):
            at = span
        elif match.group() == "[":
            at = match.end()  # "[note]" in the talk around it
        else:
            break  # an object that never closes swallows the rest
    return found, end


def _closes(text: str, start: int) -> dict[int, int | None]:
    """Where the bracket at `start` closes, strings aside; None if it does not. The same of each bracket that
    opens inside it: looked at one by one, a flood of them would be read as often as there are any."""
    closing = {"{": "}", "[": "]"}
    closes: dict[int, int | None] = {}
    waiting: list[tuple[int, str]] = []
    for token in STRING_OR_BRACKET.finditer(text, start):
        bracket = token.group()
        if bracket in closing:
            closes[token.start()] = None
            waiting.append((token.start(), closing[bracket]))
        elif bracket in ("}", "]"):
            opened, expected = waiting.pop()
            if bracket != expected:
                break
            closes[opened] = token.end()
            if not waiting:
                break
    return closes


def _decode(text: str) -> Any:
    """JSON with raw line breaks in strings and single trailing commas allowed; `_NOT_JSON` for anything
    else."""
    if depth_of(text, enough=MAX_DEPTH) > MAX_DEPTH:
        return _NOT_JSON
    load = partial(
        json.loads,
        strict=False,
        object_pairs_hook=_without_repeats,
        parse_constant=_refuse,
        parse_float=_finite,
    )
    try:
        value = load(_STRING_OR_TRAILING_COMMA.sub(lambda match: match.group(1) or "", text))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be stored nowhere
    except (ValueError, RecursionError):
        return _NOT_JSON
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that stands twice says two things."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is no finite number")
    return value


def _canonical(value: object) -> str:
    """Equal exactly where two values are the same JSON: True is not 1."""
    return json.dumps(value, sort_keys=True)


def _why(found: list[dict[str, Any]], *, validator: jsonschema.Draft202012Validator, text: str) -> str:
    if not found:
        return f"no JSON object in {text[:80]!r}"
    error = best_match(validator.iter_errors(found[-1]))
    return " ".join(str(error.message if error else "").split())[:200]
