"""Reads dialogues in the ShareGPT form, strictly: what is not understood is refused in one line.

A row is `{"conversations": [{"from": ..., "value": ...}, ...], "system": ..., "tools": ...}`. Light: it knows
no tokens, so that a file is checked before anything starts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from simulators.message import Message, ToolCall

FIELDS = ("conversations", "system", "tools")
MEDIA = ("images", "videos", "audios")
POLICY, ENVIRONMENT = ("gpt", "function_call"), ("human", "observation")
THOUGHT_END = "</think>"
FILE_FORM = "a file is one list of rows, or has one whole row a line"
MOST_SHOWN = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedDialogue:
    """One row, read."""

    place: str
    """Where it stands, for people: `FILE: row 3`."""
    index: int
    """Its place among the file's rows, from 0."""
    system: str
    """Empty where there is no system message."""
    tools: tuple[dict[str, Any], ...]
    """Schemas in OpenAI's form."""
    heard: tuple[Message, ...]  # [num_turns], or one more where the last turn is replied to
    """What the policy hears before each of its turns."""
    said: tuple[str, ...]  # [num_turns]
    """Its turns as it writes them, calls included, without the token that ends a turn."""


def count_rows(path: Path) -> int:
    """Rows of the file, all of them checked. Raises ValueError."""
    return sum(1 for _ in read_dialogues(path))


def read_dialogues(path: Path, *, start: int = 0, stop: int | None = None) -> Iterator[SharedDialogue]:
    """The rows from `start` up to `stop`. Raises ValueError with file, row, field, rule and cure."""
    rows = enumerate(_rows(path))
    for index, (place, text) in islice(rows, start, stop):
        row = _json(text, place=place, cure=FILE_FORM) if isinstance(text, str) else text
        yield _dialogue(row, place=place, index=index)


def _rows(path: Path) -> Iterator[tuple[str, object]]:
    """(where, row): the items of a JSON list; of JSON lines the lines themselves, not parsed yet."""
    found = False
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            if first.lstrip().startswith("["):
                for number, row in enumerate(_json(file.read(), place=str(path), cure=FILE_FORM), start=1):
                    found = True
                    yield f"{path}: row {number}", None if isinstance(row, str) else row
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        found = True
                        yield f"{path}: line {number}", line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): give a JSON or JSONL file") from None
    if not found:
        raise ValueError(f"{path}: holds no row: give a list of dialogues, or one dialogue a line")


def _json(text: str, *, place: str, cure: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        _refuse(place, f"not JSON ({error})", cure)


def _dialogue(row: object, *, place: str, index: int) -> SharedDialogue:
    if not isinstance(row, dict):
        _refuse(place, "a row must be an object", f'give {{"conversations": [...]}}, not {_short(row)}')
    _check_fields(row, place=place)
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        _refuse(place, f"conversations={_short(turns)}", "must be a list of turns: give at least two")
    spoken = [_turn(turn, place=f"{place}: conversations[{i}]") for i, turn in enumerate(turns)]
    system = row.get("system") or ""
    if not isinstance(system, str):
        _refuse(place, f"system={_short(system)}", "must be text: give a string, or leave it out")
    _check_text(system, place=f"{place}: system")
    if spoken[0][0] == "system":
        if system:
            _refuse(place, "conversations[0].from='system'", "the row has a `system` already: keep one")
        system, turns, spoken = spoken[0][1], turns[1:], spoken[1:]
    first = len(row["conversations"]) - len(turns)
    _check_order([role for role, _ in spoken], place=place, first=first)
    tools = _tools(row.get("tools"), place=f"{place}: tools")
    names = [tool["function"]["name"] for tool in tools]
    heard: list[Message] = []
    said: list[str] = []
    for number, (role, value) in enumerate(spoken, start=first):
        if role in ENVIRONMENT:
            heard.append(Message(role="user" if role == "human" else "tool", content=value))
        elif role == "gpt":
            said.append(value)
        else:
            said.append(_calls(value, names=names, place=f"{place}: conversations[{number}].value"))
    return SharedDialogue(
        place=place, index=index, system=system, tools=tools, heard=tuple(heard), said=tuple(said)
    )


def _check_fields(row: Mapping[str, object], *, place: str) -> None:
    """Other fields, such as an id, are let be; a misspelt one, or one that cannot be rendered, is not."""
    for name in row:
        if name in FIELDS:
            continue
        near = get_close_matches(name, FIELDS, n=1, cutoff=0.8)
        if near and near[0] not in row:
            _refuse(place, f"{name!r} is no field of a row", f"did you mean {near[0]!r}?")
    if "conversations" not in row:
        _refuse(place, "`conversations` is missing", f"a row has {', '.join(FIELDS)}: name it so")
    for name in MEDIA:
        if row.get(name):
            _refuse(place, f"{name}: policies read text alone", "leave the row out")


def _turn(turn: object, *, place: str) -> tuple[str, str]:
    """(from, value)."""
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        _refuse(place, "a turn must be an object with `from` and `value`", f"it is {_short(turn)}")
    for name in turn.keys() - {"from", "value"}:
        _refuse(place, f"{name!r} is no field of a turn", "a turn has `from` and `value`: leave it out")
    role, value = turn["from"], turn["value"]
    known = (*ENVIRONMENT, *POLICY, "system")
    if role not in known:
        _refuse(place, f"from={_short(role)} is not known", f"give one of {', '.join(known)}")
    if not isinstance(value, str):
        _refuse(place, f"value={_short(value)}", "must be text: give a string (of JSON, for function_call)")
    if not value.strip() and role != "observation":
        _refuse(place, "value is empty", f"{role} must say something: fill it in, or leave the row out")
    _check_text(value, place=f"{place}.value")
    return role, value


def _check_order(roles: Sequence[str], *, place: str, first: int) -> None:
    """The environment begins, then policy and environment take turns; a call is answered by an
    observation."""
    for number, role in enumerate(roles):
        where, before = f"{place}: conversations[{first + number}].from={role!r}", roles[number - 1 : number]
        if role == "system":
            _refuse(where, "a system message stands first or nowhere", "move it into `system`")
        if number == 0 and role != "human":
            _refuse(where, "a dialogue begins with human", "put the opening before it")
        if before and (before[0] in POLICY) == (role in POLICY):
            _refuse(where, f"it follows {before[0]!r}", "policy and environment take turns: join the two")
        if role == "human" and before and before[0] == "function_call":
            _refuse(where, "a function_call is answered by an observation", "put it between them")
    if not any(role in POLICY for role in roles):
        _refuse(place, "no turn of the policy", "give at least one turn from gpt or function_call")


def _tools(value: object, *, place: str) -> tuple[dict[str, Any], ...]:
    """From a list, or JSON text of one; schemas with or without OpenAI's envelope."""
    cure = "give a list of tool schemas, or JSON text of one"
    tools = value
    if isinstance(value, str):
        tools = _json(value, place=place, cure=cure) if value.strip() else None
    if not tools:
        return ()
    if not isinstance(tools, list):
        _refuse(place, f"{_short(tools)} is no list", cure)
    read: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        wrapped = isinstance(tool, dict) and tool.get("type") == "function" and "function" in tool
        schema = tool["function"] if wrapped else tool
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str) or not schema["name"]:
            _refuse(
                f"{place}[{number}]",
                f"{_short(tool)} is no tool schema",
                'give {"name": ..., "description": ..., "parameters": ...}',
            )
        read.append(tool if wrapped else {"type": "function", "function": tool})
    _check_text(json.dumps(read, ensure_ascii=False), place=place)
    return tuple(read)


def _calls(value: str, *, names: Sequence[str], place: str) -> str:
    """A function_call's JSON, after a thought if there is one, as a policy writes it."""
    thinks = value.lstrip().startswith("<think>") and THOUGHT_END in value
    body = (value.partition(THOUGHT_END)[2] if thinks else value).lstrip()
    thought = value[: len(value) - len(body)] if thinks else ""
    found = _json(body, place=place, cure='give {"name": ..., "arguments": {...}}, or a list of such')
    calls = found if isinstance(found, list) and found else [found]
    written: list[str] = []
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            _refuse(place, f"{_short(call)} is no call", 'give {"name": ..., "arguments": {...}}')
        if not isinstance(call.get("arguments"), dict):
            _refuse(place, f"arguments={_short(call.get('arguments'))}", "must be an object: give {...}")
        if names and call["name"] not in names:
            near = get_close_matches(call["name"], names, n=1, cutoff=0.0)[0]
            _refuse(place, f"name={call['name']!r} is not among the row's tools", f"did you mean {near!r}?")
        written.append(str(ToolCall(name=call["name"], arguments=call["arguments"])))
    _check_text("".join(written), place=place)
    return thought + "\n".join(written)


def _check_text(text: str, *, place: str) -> None:
    """JSON can escape half a surrogate pair, which no tokenizer and no table holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _refuse(place, f"character {error.start} is half a surrogate pair", "write the whole character")


def _refuse(place: str, rule: str, cure: str) -> NoReturn:
    raise ValueError(f"{place}: {rule}: {cure}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
