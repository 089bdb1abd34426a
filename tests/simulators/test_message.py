"""Text form of actions and messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.message import CHOICES, TOOL_NAME, Action, Choice, Message, parse_action


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("[answer] F30", Action(choice="answer", content="F30")),
        ("[action]1 2 3 4 ", Action(choice="action", content="1 2 3 4")),
        ("[finish]", Action(choice="finish", content="")),
        ("[search] [answer] F30", Action(choice="search", content="[answer] F30")),
        ("[buy] F30", None),
        ("[Answer] F30", None),
        (" [answer] F30", None),
        ("answer F30", None),
        ("", None),
    ],
)
def test_only_a_known_tag_at_the_start_makes_an_action(text: str, action: Action | None):
    assert parse_action(text) == action


@given(choice=st.sampled_from(CHOICES), content=st.text())
def test_an_action_is_read_back_from_its_text(choice: Choice, content: str):
    assert parse_action(str(Action(choice=choice, content=content))) == Action(
        choice=choice, content=content.strip()
    )


def test_a_thought_is_no_part_of_the_text_nor_of_the_tool_call():
    action = Action(choice="answer", content="7", thought="3+4")
    assert str(action) == "[answer] 7"
    chat = Message(role="assistant", content="", action=action).to_chat()
    arguments = {"choice": "answer", "content": "7"}
    assert chat["tool_calls"] == [
        {"type": "function", "function": {"name": TOOL_NAME, "arguments": arguments}}
    ]


def test_a_message_without_a_call_has_no_tool_calls():
    assert Message(role="user", content="hi").to_chat() == {"role": "user", "content": "hi"}
