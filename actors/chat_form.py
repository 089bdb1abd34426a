"""Forms in which a dialogue is given to a chat template, and the choice of the one that a template supports.

A template that tells the policy its tools, and repeats a call in the form that the parser reads, gets tools
and calls as such. Any other template gets them as text: the tools' schemas stand in the system message, a
call in the content of its message as it was sampled, and a tool's result is a user's message.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from actors.tool_call_parser import parse_tool_call
from simulators.message import TOOL_NAME, TOOL_SCHEMA, Action, Message

Tools = tuple[dict[str, Any], ...]
"""Tool schemas in OpenAI's form, as templates take them."""
GYM_TOOLS: Tools = (TOOL_SCHEMA,)
TOOL_PROTOCOL = """\
# Tools

You act by calling a function. Write each call as JSON between these tags, and nothing after it:
<tool_call>
{{"name": "FUNCTION", "arguments": {{...}}}}
</tool_call>

The functions:
<tools>
{schemas}
</tools>"""
"""What tells a policy its tools if its template does not."""
Render = Callable[[Sequence[dict[str, Any]], Tools], str]
"""(messages, tools) to text, up to the next assistant message, by the template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatForm:
    """How messages become those of a template."""

    has_tools: bool
    """Tools, calls and results are given as such, not as text."""
    has_system: bool
    """A system message is given as such, not at the head of the user's first message."""

    def messages(self, messages: Sequence[Message], *, tools: Tools) -> list[dict[str, Any]]:
        """The template's messages."""
        if not self.has_tools:
            messages = _as_text(messages, tools=tools)
        if not self.has_system:
            messages = _without_system(messages)
        return [message.to_chat() for message in messages]

    def tools(self, tools: Tools) -> Tools:
        """The template's tools."""
        return tools if self.has_tools else ()


NATIVE = ChatForm(has_tools=True, has_system=True)
FORMS = (
    NATIVE,
    ChatForm(has_tools=True, has_system=False),
    ChatForm(has_tools=False, has_system=True),
    ChatForm(has_tools=False, has_system=False),
)
"""In order of preference."""
PROBE = (
    Message(role="system", content="probe rules"),
    Message(role="user", content="probe opening"),
    Message(role="assistant", content="", action=Action(choice="action", content="probe call one")),
    Message(role="tool", content="probe result one"),
    Message(role="assistant", content="", action=Action(choice="action", content="probe call two")),
    Message(role="tool", content="probe result two"),
)
"""A dialogue whose every text must appear in what a template makes of it, once and in order."""


def choose_form(render: Render, *, specials: Sequence[str], name: str) -> ChatForm:
    """The first of `FORMS` in which the template keeps a dialogue whole. Raises ValueError, one line, with
    what is wrong in the last one; `name` begins it."""
    problem = ""
    for form in FORMS:
        problem = _problem(form, render, specials)
        if not problem:
            return form
    raise ValueError(
        f"{name}: its chat template cannot hold a dialogue with tool calls: {problem}: mend the template, or "
        "take another policy"
    )


def stop_text_of(form: ChatForm, render: Render, *, specials: Sequence[str], eos: str, name: str) -> str:
    """The special token that ends an assistant message: the first one that the template writes after it, and
    `eos`, the end-of-sequence token (empty: there is none), if several begin there. Raises ValueError if it
    writes none of `specials`."""
    text = render(form.messages(PROBE, tools=GYM_TOOLS), form.tools(GYM_TOOLS))
    after = text.partition(PROBE[2].action.content)[2].partition(PROBE[3].content)[0]  # type: ignore[union-attr]
    found = {token: after.find(token) for token in specials if token in after}
    if not found:
        raise ValueError(
            f"{name}: its chat template puts no special token after an assistant message, so that no "
            "completion would end: mend the template"
        )
    return min(found, key=lambda token: (found[token], token != eos, -len(token)))


def _problem(form: ChatForm, render: Render, specials: Sequence[str]) -> str:
    """What keeps the template from this form; empty if nothing does."""

    def text_of(number: int) -> str:
        return render(form.messages(PROBE[:number], tools=GYM_TOOLS), form.tools(GYM_TOOLS))

    try:
        opening, whole = text_of(2), text_of(len(PROBE))
    except Exception as error:  # a template can raise anything: its own checks, and mistakes of its author
        return f"it raises {' '.join(str(error).split()) or type(error).__name__}"
    texts = [message.action.content if message.action else message.content for message in PROBE]
    places = [whole.find(text) for text in texts]
    for text, place in zip(texts, places, strict=True):
        if place < 0 or whole.count(text) > 1:
            return f"it {'omits' if place < 0 else 'repeats'} a message ({text!r})"
    if any(place > following for place, following in pairwise(places)):
        return "it changes the order of messages"
    if TOOL_NAME not in opening:
        return "it does not tell the policy its tools"
    first_call = whole[places[1] + len(texts[1]) : places[3]]
    if parse_tool_call(first_call) != PROBE[2].action:
        return "it writes tool calls in a form that the parser does not read"
    after_first, after_last = (whole[places[i] + len(texts[i]) :] for i in (3, 5))
    missing = after_first[: places[4] - places[3] - len(texts[3])].removeprefix(after_last)
    if any(token in missing for token in specials):
        return "it begins no assistant message after a result"
    return ""


def _as_text(messages: Sequence[Message], *, tools: Tools) -> list[Message]:
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    protocol = TOOL_PROTOCOL.format(schemas=schemas) if tools else ""
    if not messages or messages[0].role != "system":
        messages = [Message(role="system", content=""), *messages]
    first, *rest = messages
    told = "\n\n".join(text for text in (first.content, protocol) if text)
    plain = [replace(first, content=told)] if told else []
    for message in rest:
        calls = [message.action.to_call()] if message.action else message.calls
        content = "\n".join(text for text in (message.content, *map(str, calls)) if text)
        role = "user" if message.role == "tool" else message.role
        plain.append(Message(role=role, content=content))
    return plain


def _without_system(messages: Sequence[Message]) -> list[Message]:
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return list(messages)
    system, user, *rest = messages
    return [replace(user, content=f"{system.content}\n\n{user.content}"), *rest]
