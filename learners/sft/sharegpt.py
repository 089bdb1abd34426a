"""Strict parser of dialogues in ShareGPT format; anything else is refused in one line.

A row is `{"conversations": [{"from": ..., "value": ...}, ...], "system": ..., "tools": ...}`. Light: it works
without a tokenizer, so that files are checked before a run starts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from actors.tool_call_parser import CALL_BEGIN, CALL_END, THOUGHT_END
from learners.sft.json_rows import read_rows, refuse, short, strict_json
from simulators.message import Message, ToolCall

FIELDS = ("conversations", "system", "tools")
MEDIA = ("images", "videos", "audios")
POLICY, ENVIRONMENT = ("gpt", "function_call"), ("human", "observation")
MARKERS = (THOUGHT_END, CALL_BEGIN, CALL_END)
"""Markers that a call must not contain, since a parser would end the thought or the call there."""
CALL_FORM = 'give {"name": ..., "arguments": {...}}'


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedDialogue:
    """One parsed row."""

    place: str
    """Place for messages: `FILE: row 3`."""
    index: int
    """Index among the file's rows, from 0."""
    system: str
    """The system message, or empty."""
    tools: tuple[dict[str, Any], ...]
    """Schemas in OpenAI's form."""
    observations: tuple[Message, ...]  # [num_turns], or one more if the last turn has a reply
    """The message before each of the policy's turns."""
    completions: tuple[str, ...]  # [num_turns]
    """The policy's turns, calls included, without the end-of-turn token."""


def count_rows(path: Path) -> int:
    """Checks all rows of the file and returns their number. Raises ValueError."""
    return sum(1 for _ in read_dialogues(path))


def read_dialogues(path: Path) -> Iterator[SharedDialogue]:
    """All rows, one at a time. Raises ValueError with file, row, field, rule and cure."""
    for index, (place, row) in enumerate(read_rows(path)):
        yield _dialogue(row, place=place, index=index)


def _dialogue(row: object, *, place: str, index: int) -> SharedDialogue:
    if not isinstance(row, dict):
        refuse(place, "a row must be an object", f'give {{"conversations": [...]}}, not {short(row)}')
    _check_fields(row, place=place)
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        refuse(place, f"conversations={short(turns)}", "must be a list of turns: give at least two")
    messages = [_turn(turn, place=f"{place}: conversations[{i}]") for i, turn in enumerate(turns)]
    system = "" if row.get("system") is None else row["system"]
    if not isinstance(system, str):
        refuse(place, f"system={short(system)}", "must be text: give a string, or leave it out")
    _check_text(system, place=f"{place}: system")
    if messages[0][0] == "system":
        if system:
            refuse(place, "conversations[0].from='system'", "the row has a `system` already: keep one")
        system, turns, messages = messages[0][1], turns[1:], messages[1:]
    first = len(row["conversations"]) - len(turns)
    _check_order([role for role, _ in messages], place=place, first=first)
    tools = _tools(row.get("tools"), place=f"{place}: tools")
    names = [tool["function"]["name"] for tool in tools]
    observations: list[Message] = []
    completions: list[str] = []
    for number, (role, value) in enumerate(messages, start=first):
        if role in ENVIRONMENT:
            observations.append(Message(role="user" if role == "human" else "tool", content=value))
        elif role == "gpt":
            completions.append(value)
        else:
            completions.append(_calls(value, names=names, place=f"{place}: conversations[{number}].value"))
    return SharedDialogue(
        place=place,
        index=index,
        system=system,
        tools=tools,
        observations=tuple(observations),
        completions=tuple(completions),
    )


def _check_fields(row: Mapping[str, object], *, place: str) -> None:
    """Ignores other fields, such as an id; refuses misspelt ones and media."""
    for name in row:
        if name in FIELDS:
            continue
        near = get_close_matches(name, FIELDS, n=1, cutoff=0.8)
        if near and near[0] not in row:
            refuse(place, f"{name!r} is not a field of a row", f"did you mean {near[0]!r}?")
    if "conversations" not in row:
        refuse(place, "`conversations` is missing", f"a row has {', '.join(FIELDS)}: name it so")
    for name in MEDIA:
        if row.get(name):
            refuse(place, f"{name}: policies read text only", "leave the row out")


def _turn(turn: object, *, place: str) -> tuple[str, str]:
    """(from, value)."""
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        refuse(place, "a turn must be an object with `from` and `value`", f"it is {short(turn)}")
    for name in turn.keys() - {"from", "value"}:
        refuse(place, f"{name!r} is not a field of a turn", "a turn has `from` and `value`: leave it out")
    role, value = turn["from"], turn["value"]
    known = (*ENVIRONMENT, *POLICY, "system")
    if role not in known:
        refuse(place, f"from={short(role)} is not known", f"give one of {', '.join(known)}")
    if not isinstance(value, str):
        refuse(place, f"value={short(value)}", "must be text: give a string (of JSON, for function_call)")
    if not value.strip() and role != "observation":
        refuse(place, "value is empty", f"{role} must have text: fill it in, or leave the row out")
    _check_text(value, place=f"{place}.value")
    return role, value


def _check_order(roles: Sequence[str], *, place: str, first: int) -> None:
    """Refuses wrong orders: the environment starts, policy and environment alternate, and a call is followed
    by an observation."""
    for number, role in enumerate(roles):
        where, before = f"{place}: conversations[{first + number}].from={role!r}", roles[number - 1 : number]
        if role == "system":
            refuse(where, "a system message must be the first", "move it into `system`")
        if number == 0 and role != "human":
            refuse(where, "a dialogue starts with human", "put the opening before it")
        if before and (before[0] in POLICY) == (role in POLICY):
            refuse(where, f"it follows {before[0]!r}", "policy and environment must alternate: join the two")
        if role == "human" and before and before[0] == "function_call":
            refuse(where, "a function_call is followed by an observation", "put it between them")
    if not any(role in POLICY for role in roles):
        refuse(place, "no turn of the policy", "give at least one turn from gpt or function_call")


def _tools(value: object, *, place: str) -> tuple[dict[str, Any], ...]:
    """Tool schemas from a list or its JSON text, with or without OpenAI's envelope."""
    cure = "give a list of tool schemas, or JSON text of one"
    tools = value
    if isinstance(value, str):
        tools = strict_json(value, place=place, cure=cure) if value.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list):
        refuse(place, f"{short(tools)} is not a list", cure)
    read: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        wrapped = isinstance(tool, dict) and tool.get("type") == "function" and "function" in tool
        schema = tool["function"] if wrapped else tool
        if not isinstance(schema, dict) or not _is_name(schema.get("name")):
            refuse(
                f"{place}[{number}]",
                f"{short(tool)} is not a tool schema",
                'give {"name": ..., "description": ..., "parameters": ...}',
            )
        read.append(tool if wrapped else {"type": "function", "function": tool})
    _check_text(json.dumps(read, ensure_ascii=False), place=place)
    return tuple(read)


def _calls(value: str, *, names: Sequence[str], place: str) -> str:
    """The calls of a function_call's JSON, after a thought if there is one, in the policy's notation."""
    thinks = value.lstrip().startswith("<think>") and THOUGHT_END in value
    body = (value.partition(THOUGHT_END)[2] if thinks else value).lstrip()
    thought = value[: len(value) - len(body)] if thinks else ""
    found = strict_json(body, place=place, cure=f"{CALL_FORM}, or a list of such")
    calls = found if isinstance(found, list) and found else [found]
    written = "\n".join(_call(call, names=names, place=place) for call in calls)
    _check_text(written, place=place)
    return thought + written


def _call(call: object, *, names: Sequence[str], place: str) -> str:
    if not isinstance(call, dict) or not _is_name(call.get("name")):
        refuse(place, f"{short(call)} is not a call", CALL_FORM)
    for field in call.keys() - {"name", "arguments"}:
        refuse(place, f"{field!r} is not a field of a call", f"{CALL_FORM}, and leave it out")
    name, arguments = call["name"], call.get("arguments")
    if not isinstance(arguments, dict):
        refuse(place, f"arguments={short(arguments)}", "must be an object: give {...}")
    if names and name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
        refuse(place, f"name={name!r} is not among the row's tools", f"did you mean {near!r}?")
    text = json.dumps(call, ensure_ascii=False)
    for marker in MARKERS:
        if marker in text:
            refuse(
                place, f"the call of {name!r} contains {marker}, which would end it", "write it another way"
            )
    return str(ToolCall(name=name, arguments=arguments))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_text(text: str, *, place: str) -> None:
    """Refuses half a surrogate pair, which JSON can escape but neither tokenizers nor tables can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(place, f"character {error.start} is half a surrogate pair", "write the whole character")
