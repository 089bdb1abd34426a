"""Tool calls in a completion: what counts as a call, parsed in time proportional to the text."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.tool_call_parser import call_texts, parse_tool_call, read_completion
from simulators.input_limits import MAX_DEPTH
from simulators.message import TOOL_NAME, Action, Message, ToolCall
from tests.effort import examples
from tests.simulators.hostile import hostile_texts

PATTERN = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
"""The definition of a call, as a pattern; it takes time quadratic in the text."""
PIECES = (
    "<tool_call>",
    "</tool_call>",
    "{",
    "}",
    " ",
    "\n",
    "a",
    '"',
    "</think>",
    "<tool_call>{",
    "}</tool_call>",
)


@given(st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=examples(1000), deadline=None)
def test_call_texts_equal_the_pattern(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert list(call_texts(text)) == PATTERN.findall(text)


@pytest.mark.parametrize("read", [lambda text: list(call_texts(text)), parse_tool_call, read_completion])
def test_no_completion_blocks_or_breaks_the_parser(read) -> None:  # type: ignore[no-untyped-def]
    for text in hostile_texts(40_000):
        began = time.process_time()
        read(text)
        assert time.process_time() - began < 0.1, text[:60]


def test_a_call_that_is_nested_too_deep_is_no_call() -> None:
    def nested(depth: int) -> str:
        content = (
            '{"name": "interact_with_env", "arguments": {"choice": "answer", "content": "F3", "more": %s}}'
        )
        return f"<tool_call>{content % ('[' * depth + ']' * depth)}</tool_call>"

    assert parse_tool_call(nested(MAX_DEPTH - 2)) == Action(choice="answer", content="F3")
    assert parse_tool_call(nested(MAX_DEPTH - 1)) is None
    assert parse_tool_call(nested(5_000)) is None


def call(choice: str, content: str) -> str:
    arguments = {"choice": choice, "content": content}
    return f"<tool_call>\n{json.dumps({'name': TOOL_NAME, 'arguments': arguments})}\n</tool_call>"


def raw(text: str) -> str:
    return f"<tool_call>{text}</tool_call>"


NAMED = f'"name": "{TOOL_NAME}"'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[answer] F3",
        '{"choice": "answer", "content": "F3"}',
        raw(""),
        raw("[]"),
        raw("null"),
        raw("{}"),
        raw(f'{{{NAMED}, "arguments": {{"choice": "answer", "content": "F3"}}'),  # a brace is missing
        raw(f"{{{NAMED}, 'arguments': {{}}}}"),
        raw('{"name": "other", "arguments": {"choice": "answer", "content": "F3"}}'),
        raw('{"arguments": {"choice": "answer", "content": "F3"}}'),
        raw(f'{{{NAMED}, "arguments": "answer F3"}}'),
        raw(f'{{{NAMED}, "arguments": ["answer", "F3"]}}'),
        raw(f"{{{NAMED}}}"),
        raw(f'{{{NAMED}, "arguments": {{"choice": "answer", "content": 3}}}}'),
        raw(f'{{{NAMED}, "arguments": {{"choice": "answer"}}}}'),
        raw(f'{{{NAMED}, "arguments": {{"choice": "buy", "content": "F3"}}}}'),
        raw(f'{{{NAMED}, "arguments": {{"choice": ["answer"], "content": "F3"}}}}'),
        raw(f'{{{NAMED}, "arguments": {{"choice": null, "content": "F3"}}}}'),
        raw(f'{{{NAMED}, "arguments": {{"choice": "answer", "content": "\\ud800"}}}}'),
        raw('{"a":' * 100_000 + "}"),
        raw(f'{{{NAMED}, "arguments": {{"choice": "answer", "content": "3"}}, "n": {"9" * 5000}}}'),
        call("answer", "F3").removesuffix("</tool_call>"),
        "<tool_call>\n```json\n" + call("answer", "F3")[12:-13] + "\n```\n</tool_call>",
        f"<think>{call('answer', 'F3')}</think>",
        raw("{oops}") + call("answer", "F3"),
    ],
)
def test_a_call_that_does_not_fit_the_tools_schema_is_no_call(text: str):
    assert parse_tool_call(text) is None


@pytest.mark.parametrize(
    "text",
    [
        call("answer", "F3"),
        "Well: " + call("answer", "F3") + call("answer", "H7"),
        f"<think>\nI could {call('finish', '')}.\n</think>\n\n{call('answer', 'F3')}",
        "```\n" + call("answer", "F3") + "\n```",
        raw(f'\n\n{{"arguments":{{"content":"F3","choice":"answer"}},{NAMED},"id":1}} '),
    ],
)
def test_the_first_call_after_the_thought_counts(text: str):
    assert parse_tool_call(text) == Action(choice="answer", content="F3")


def test_calls_of_any_tool_are_read_from_a_completion_and_of_the_gyms_tool_the_first():
    look = ToolCall(name="look", arguments={"at": "sky"})
    both = read_completion(f"<think>Hm.</think>Now: {look}\n{look}")
    assert (both.content, both.action, both.calls) == ("<think>Hm.</think>Now:", None, (look, look))
    functions = [entry["function"] for entry in both.to_chat()["tool_calls"]]
    assert functions == [{"name": "look", "arguments": {"at": "sky"}}] * 2
    own = read_completion(call("search", "a") + call("finish", ""))
    assert (own.action, own.calls) == (Action(choice="search", content="a"), ())
    for text in ("No call.", "<tool_call>{broken}</tool_call>", '<tool_call>{"name": 3}</tool_call>'):
        assert read_completion(text) == Message(role="assistant", content=text)
