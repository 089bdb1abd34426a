"""Tool calls in what a policy wrote: those that the pattern found, in time that grows with the text."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.renderer import parse_tool_call, read_completion
from actors.tool_call_parser import call_texts
from simulators.input_limits import MAX_DEPTH
from simulators.message import Action
from tests.simulators.hostile import hostile_texts

PATTERN = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
"""What a call is. It takes time that grows with the square of a text."""
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
@settings(max_examples=1000, deadline=None)
def test_calls_are_what_the_pattern_says(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert list(call_texts(text)) == PATTERN.findall(text)


@pytest.mark.parametrize("read", [lambda text: list(call_texts(text)), parse_tool_call, read_completion])
def test_no_completion_stops_its_reader_or_breaks_it(read) -> None:  # type: ignore[no-untyped-def]
    for text in hostile_texts(40_000):
        began = time.process_time()
        read(text)
        assert time.process_time() - began < 0.1, text[:60]


def test_a_deep_call_is_no_call() -> None:
    def call(depth: int) -> str:
        content = (
            '{"name": "interact_with_env", "arguments": {"choice": "answer", "content": "F3", "more": %s}}'
        )
        return f"<tool_call>{content % ('[' * depth + ']' * depth)}</tool_call>"

    assert parse_tool_call(call(MAX_DEPTH - 2)) == Action(choice="answer", content="F3")
    assert parse_tool_call(call(MAX_DEPTH - 1)) is None
    assert parse_tool_call(call(5_000)) is None
