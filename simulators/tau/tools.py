"""Tool records, the parser of tool calls in a policy's text, and the tools that every tau domain has.

A call is text: `{"name": ..., "arguments": {...}}`, `name {...}`, `name: {...}` or `name key=value ...`.
Errors are texts for the policy and change nothing.
"""

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from simulators.tau.database import Database, Record

MAX_CALL_CHARS = 10_000
MAX_BRACKETS = 200
"""Longer or deeper calls are refused unread, so that no parser reaches its recursion limit."""
MAX_DIGITS = 15
MAX_EXPRESSION_CHARS = 200
MAX_ERROR_CHARS = 200
TRANSFER = "transfer_to_human_agents"
TOOL_FAULTS = (TypeError, KeyError, ValueError, IndexError, AttributeError, ArithmeticError)
"""Exceptions that a tool may raise on arguments without a schema check."""


TEXT = {"type": "string"}


class ToolError(Exception):
    """Refusal by a tool; its text is shown to the policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """One tool of a shop."""

    description: str
    properties: Mapping[str, Any]
    """JSON schema of each argument; all are required."""
    run: Callable[..., tuple[Database, str]]
    """(database, **arguments) to the database afterwards and the text of the result. Raises ToolError."""

    def schema(self) -> dict[str, Any]:
        """JSON schema of all arguments."""
        return {"type": "object", "properties": dict(self.properties), "required": list(self.properties)}


def make_tool(run: Callable[..., tuple[Database, str]], description: str, **properties: Any) -> Tool:
    """A tool with the JSON schema of each argument as a keyword."""
    return Tool(description=description, properties=properties, run=run)


def find_record(database: Database, table: str, key: str) -> Record:
    """The present record, read-only. Raises ToolError if there is none."""
    record = database.find(table, key)
    if record is None:
        raise ToolError(f"{table.removesuffix('s')} not found")
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class TauToolCall:
    """One tool call."""

    name: str
    arguments: Mapping[str, Any]


def parse_call(text: str, tools: Mapping[str, Tool]) -> TauToolCall:
    """Parses a call in any of its forms. Raises ToolError with the fault and the right form."""
    if len(text) > MAX_CALL_CHARS or text.count("[") + text.count("{") > MAX_BRACKETS:
        raise ToolError(f"the call is too long: at most {MAX_CALL_CHARS} characters")
    text = text.strip()
    name, arguments = ("", _json(text)) if text.startswith("{") else _named(text, tools)
    if not name and isinstance(arguments, dict):
        name, arguments = arguments.get("name"), arguments.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolError('a call is {"name": ..., "arguments": {...}} or: name key=value')
    return TauToolCall(name=name, arguments=arguments)


def run_call(
    database: Database, call: TauToolCall, tools: Mapping[str, Tool], *, validated: bool = True
) -> tuple[Database, str]:
    """Runs a call; every error is a text that starts with `Error: ` and changes nothing. `validated` False
    skips the schema check of the arguments, as the published rules do."""
    tool = tools.get(call.name)
    if tool is None:
        return database, f"Unknown action {call.name[:MAX_ERROR_CHARS]}"
    if validated and (fault := _fault(call, tool)):
        return database, f"Error: {fault}"
    try:
        return tool.run(database, **call.arguments)
    except ToolError as error:
        return database, f"Error: {error}"
    except TOOL_FAULTS as error:
        return database, f"Error: {str(error)[:MAX_ERROR_CHARS]}"


def list_tools(tools: Mapping[str, Tool]) -> str:
    """All tools with their full JSON schemas, one a line."""
    return "\n".join(
        json.dumps({"name": name, "description": tool.description, "parameters": tool.schema()})
        for name, tool in tools.items()
    )


def _fault(call: TauToolCall, tool: Tool) -> str:
    unknown = [key for key in call.arguments if key not in tool.properties]
    if unknown:
        known = ", ".join(tool.properties)
        return f"{call.name} has no argument {unknown[0][:40]!r}; its arguments are: {known or 'none'}"
    error = next(_validator(json.dumps(tool.schema())).iter_errors(dict(call.arguments)), None)
    if error is None:
        return ""
    where = ".".join(map(str, error.absolute_path))
    return f"{where}: {error.message}"[:MAX_ERROR_CHARS] if where else error.message[:MAX_ERROR_CHARS]


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _named(text: str, tools: Mapping[str, Tool]) -> tuple[str, Any]:
    """`name`, `name {...}`, `name: {...}` or `name key=value ...`."""
    match = re.match(r"(\w+)\s*(?:[:(]\s*(?=\{))?", text)
    if match is None:
        raise ToolError('a call is {"name": ..., "arguments": {...}} or: name key=value')
    name, rest = match.group(1), text[match.end() :].strip()
    if rest.startswith("{"):
        return name, _json(rest.rstrip(") "))
    properties = tools[name].properties if name in tools else {}
    return name, _pairs(rest, properties)


def _pairs(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """`key=value key="a b" key=[...]` to arguments, each value converted to the tool's type."""
    arguments: dict[str, Any] = {}
    at = 0
    while at < len(text):
        key = re.compile(r"[\s,]*(\w+)=").match(text, at)
        if key is None:
            raise ToolError(f"cannot read {text[at : at + 40]!r}: write key=value")
        at = key.end()
        if text[at : at + 1] in ('"', "[", "{"):
            value, at = _decode(text, at)
        else:
            end = re.compile(r"\S*").match(text, at)
            raw = end.group() if end else ""
            value, at = _typed(raw, properties.get(key.group(1), {}).get("type")), at + len(raw)
        arguments[key.group(1)] = value
    return arguments


def _typed(raw: str, kind: str | None) -> object:
    if kind == "array":
        return [part for part in raw.split(",") if part]
    if kind in ("integer", "number") and re.fullmatch(
        rf"-?\d{{1,{MAX_DIGITS}}}(\.\d{{1,{MAX_DIGITS}}})?", raw
    ):
        return float(raw) if "." in raw else int(raw)
    return raw


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _number(text: str) -> int | float:
    value = float(text)
    if not math.isfinite(value) or abs(value) >= 10**MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(value) if value.is_integer() else value


def _constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON number")


DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _json(text: str) -> object:
    value, end = _decode(text, 0)
    if text[end:].strip():
        raise ToolError("there is text behind the JSON: make one call at a time")
    return value


def _decode(text: str, at: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, at)
    except ValueError as error:
        raise ToolError(f"not valid JSON: {str(error)[:MAX_ERROR_CHARS]}") from error


def transfer(database: Database, summary: str) -> tuple[Database, str]:
    return database, "Transfer successful"


def think(database: Database, thought: str) -> tuple[Database, str]:
    return database, ""


OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(database: Database, expression: str) -> tuple[Database, str]:
    """The value of numbers, + - * / and parentheses, rounded to cents. Nothing is executed."""
    if len(expression) > MAX_EXPRESSION_CHARS or not re.fullmatch(r"[0-9+\-*/(). ]+", expression):
        raise ToolError("invalid characters in expression")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError, MemoryError, RecursionError) as error:
        raise ToolError(str(error)[:MAX_ERROR_CHARS]) from error
    if not math.isfinite(value):
        raise ToolError("the result is too large")
    return database, str(round(value, 2))


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(left), _value(right))
    raise ToolError("only numbers, + - * / and parentheses can be calculated")
