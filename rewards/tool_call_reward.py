"""ToolRL's reward for the correctness of tool calls (arXiv 2504.13958 §3.3): separate credit for tool name,
argument names and argument values.

With G the gold calls and P the calls that were made,

    r_name  = |N_G and N_P| / |N_G or N_P|, the sets of names
    r_param = sum over matched pairs of |keys_G and keys_P| / |keys_G or keys_P|
    r_value = sum over matched pairs of the number of gold arguments whose value is the same
    s       = max over matchings of (r_name + r_param + r_value) / (1 + |G| + sum over G of |keys_G|)

The paper pays 6 s - 3; a weight of 6 gives the same differences. A matching pairs each gold call with at most
one call of the same name, as the released code does, and is found optimally (Hungarian algorithm).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulators.input_limits import load_json
from simulators.message import ToolCall
from simulators.tau.shop_registry import TOOLS
from simulators.tau.tools import ToolError, parse_call

if TYPE_CHECKING:
    import pyarrow as pa

ALL_TOOLS = {name: tool for tools in TOOLS.values() for name, tool in tools.items()}
"""For the types of `key=value` arguments."""
LOOKS_LIKE_A_CALL = re.compile(r"\s*(\{|\w+\s*(?:[:(]\s*)?\{|\w+\s+\w+=)")
NO_ARGUMENTS = 1.0
"""Overlap of two empty sets of argument names: nothing was wanted and nothing was given."""


def tool_call_rewards(table: pa.Table) -> NDArray[np.float64]:
    """s_t - s_(t-1) for each turn of a group [num_turns], s_t over the calls up to turn t.

    Compared are the calls of the kinds (`choice`) that the gold calls have: where the gold is an answer,
    asking the user and searching are no tool calls and cost nothing.
    """
    rewards = np.zeros(table.num_rows)
    columns = (table[name].to_pylist() for name in ("trajectory", "gold", "choice", "content"))
    current, before, gold, made = -1, 0.0, list[ToolCall](), list[ToolCall]()
    kinds: set[str] = set()
    for row, (trajectory, text, choice, content) in enumerate(zip(*columns, strict=True)):
        if trajectory != current:
            calls = json.loads(text) if text else []
            gold = [read_call(call["choice"], call["content"]) for call in calls]
            current, before, made, kinds = trajectory, 0.0, [], {call["choice"] for call in calls}
        if choice in kinds:
            made.append(read_call(choice, content))
            after = match_score(gold, made)
            rewards[row], before = after - before, after
    return rewards


def match_score(gold: Sequence[ToolCall], made: Sequence[ToolCall]) -> float:
    """s of the module's text, in [0, 1]; 0 without gold calls.

    Example: gold `f(a=1, b=2)`, made `f(a=1, c=2)`: (1 + 1/3 + 1) / (1 + 1 + 2) = 0.583.
    """
    from scipy.optimize import linear_sum_assignment  # heavy, and needed by this reward alone

    if not gold:
        return 0.0
    worth = np.array([[_pair_score(wanted, call) for call in made] for wanted in gold]).reshape(
        len(gold), len(made)
    )
    matched = float(worth[linear_sum_assignment(worth, maximize=True)].sum())
    most = 1 + len(gold) + sum(len(call.arguments) for call in gold)
    return (_overlap({call.name for call in gold}, {call.name for call in made}) + matched) / most


def read_call(choice: str, content: str) -> ToolCall:
    """A turn's content as a call: a tool's name with its arguments where it is one, in JSON or as `name
    key=value`; a JSON object as arguments; any other text as the one argument `content`."""
    if LOOKS_LIKE_A_CALL.match(content):
        try:
            call = parse_call(content, ALL_TOOLS)
            return ToolCall(name=call.name, arguments=call.arguments)
        except ToolError:
            pass  # a call of another form, or a text that only begins like one
    try:
        value = load_json(content)
    except ValueError:
        value = None
    return ToolCall(name=choice, arguments=value if isinstance(value, dict) else {"content": content})


def _pair_score(gold: ToolCall, made: ToolCall) -> float:
    """r_param + r_value of one pair; 0 for another tool."""
    if gold.name != made.name:
        return 0.0
    same = [
        key
        for key, value in gold.arguments.items()
        if key in made.arguments and _plain(made.arguments[key]) == _plain(value)
    ]
    return _overlap(set(gold.arguments), set(made.arguments)) + len(same)


def _overlap(gold: set[str], made: set[str]) -> float:
    return len(gold & made) / len(gold | made) if gold | made else NO_ARGUMENTS


def _plain(value: object) -> str:
    """A value as text, without case and spacing: `3`, `3.0` and `"3"` are the same; lists keep their
    order."""
    text = value if isinstance(value, str) else json.dumps(_whole(value), sort_keys=True, ensure_ascii=False)
    return " ".join(text.casefold().split())


def _whole(value: object) -> object:
    """The value with whole floats as integers, however deep."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value
