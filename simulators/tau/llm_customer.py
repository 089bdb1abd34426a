"""LLM role of the tau customer: the model writes its text and whether it is satisfied, without seeing the
database."""

import json
from collections.abc import Mapping
from typing import Any

from simulators.user import LlmRole, UserCall, UserReply, flat_schema

MAX_SAY = 600


def instructions(call: UserCall) -> str:
    scenario = call.scenario
    wants = [{"want": wish["text"], "details": wish["arguments"]} for wish in scenario["wishes"]]
    return (
        "You are a customer who talks to a shop's service agent. Play only the customer.\n"
        f"Your task, in full: {json.dumps(scenario['request'] or 'see what you want')}\n"
        f"You know of yourself: {json.dumps(scenario['known'])}\n"
        f"What you want, in the end: {json.dumps(wants)}\n"
        "Say one or two short sentences. Tell only what you are asked, one want at a time; give details such "
        "as payment, reason or address only when asked. Say yes when asked to confirm what you want, and no "
        "to anything else. Never invent facts: what is not written here you do not know. Leave the agent's "
        "work to the agent.\n"
        "done: true only when the agent has reported on everything you want, or has told you that it cannot "
        "be done, or hands you over; then say goodbye. Otherwise false."
    )


def schema(call: UserCall) -> dict[str, Any]:
    return flat_schema(
        {"say": {"type": "string", "minLength": 1, "maxLength": MAX_SAY}, "done": {"type": "boolean"}}
    )


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    """The model's text unchanged, and whether it ends the dialogue."""
    return UserReply(text=str(verdict["say"])[:MAX_SAY], facts={"stop": verdict["done"] is True})


ROLE = LlmRole(instructions=instructions, schema=schema, read=read)
