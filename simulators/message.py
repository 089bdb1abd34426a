"""Chat messages, actions and the `interact_with_env` tool: the data that environments, users and policies
exchange."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Choice = Literal["action", "answer", "search", "finish"]
CHOICES: tuple[Choice, ...] = ("action", "answer", "search", "finish")

TOOL_NAME = "interact_with_env"
TOOL_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "Speak to the user or use the environment.",
        "parameters": {
            "type": "object",
            "properties": {
                "choice": {"type": "string", "enum": list(CHOICES)},
                "content": {"type": "string"},
            },
            "required": ["choice", "content"],
        },
    },
}
"""The tool of every gym (UserRL, arXiv 2509.19736 §3), with `finish` as the explicit way to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """The policy's action in one turn. Its text form is `[choice] content`."""

    choice: Choice
    content: str
    thought: str = ""
    """A scripted expert's reasoning before the action: for demonstrations, never sent to the environment."""

    def __str__(self) -> str:
        return f"[{self.choice}] {self.content}"

    def to_call(self) -> "ToolCall":
        return ToolCall(name=TOOL_NAME, arguments={"choice": self.choice, "content": self.content})


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call of any tool: demonstrations from files may have other tools than the gyms' one."""

    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        """The text form that a policy writes: Qwen3's."""
        call = json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One chat entry."""

    role: Role
    content: str
    action: Action | None = None
    """The tool call of an assistant message; None if it has no valid one."""
    calls: tuple[ToolCall, ...] = ()
    """Calls that are no `action`: of other tools, or several at once. Never used in the gyms."""

    def to_chat(self) -> dict[str, Any]:
        """The form that `apply_chat_template` of transformers takes."""
        calls = (self.action.to_call(),) if self.action else self.calls
        if not calls:
            return {"role": self.role, "content": self.content}
        functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
        tool_calls = [{"type": "function", "function": function} for function in functions]
        return {"role": self.role, "content": self.content, "tool_calls": tool_calls}


def parse_action(text: str) -> Action | None:
    """Reads `[choice] content`; None if the text does not start with a known tag.

    Example: `parse_action("[answer] F3")` is `Action(choice="answer", content="F3")`.
    """
    for choice in CHOICES:
        tag = f"[{choice}]"
        if text.startswith(tag):
            return Action(choice=choice, content=text[len(tag) :].strip())
    return None
