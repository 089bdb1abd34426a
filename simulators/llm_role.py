"""LLM form of a gym's user: role prompt, JSON schema of verdicts, and the reading of a verdict.

The model never writes a score. It says which of the gym's own facts the agent's text touches, as validated
JSON; the gym's rules make the reply and the reward of that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulators.user import UserCall, UserReply


@dataclass(frozen=True, kw_only=True, slots=True)
class LlmRole:
    """The LLM form of one gym's user. All functions are pure."""

    instructions: Callable[[UserCall], str]
    """Who the model is and how to decide, the scenario included. Never a word of the agent's: that travels
    apart, as JSON."""
    schema: Callable[[UserCall], dict[str, Any]]
    """JSON schema of the verdict: a flat object of enums, booleans and capped strings."""
    read: Callable[[UserCall, Mapping[str, Any]], UserReply]
    """(call, a verdict that fits the schema) to the reply, with the same `facts` as the rule-based user's."""


def flat_schema(properties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of an object with exactly these properties, all of them required."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
