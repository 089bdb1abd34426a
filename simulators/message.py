"""Messages and the one tool: the language that environments, users and policies speak. Knows no tokens."""

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
    """What the policy does in one turn. Its text form is `[choice] content`."""

    choice: Choice
    content: str
    thought: str = ""
    """What a scripted expert thinks before it acts: demonstrations show it, the environment never sees it."""

    def __str__(self) -> str:
        return f"[{self.choice}] {self.content}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One chat entry."""

    role: Role
    content: str
    action: Action | None = None
    """The tool call of an assistant message; None where it made no valid one."""

    def to_chat(self) -> dict[str, Any]:
        """The form that `apply_chat_template` of transformers takes."""
        if self.action is None:
            return {"role": self.role, "content": self.content}
        arguments = {"choice": self.action.choice, "content": self.action.content}
        call = {"type": "function", "function": {"name": TOOL_NAME, "arguments": arguments}}
        return {"role": self.role, "content": self.content, "tool_calls": [call]}


def parse_action(text: str) -> Action | None:
    """Reads `[choice] content`; None if the text does not start with a known tag.

    Example: `parse_action("[answer] F3")` is `Action(choice="answer", content="F3")`.
    """
    for choice in CHOICES:
        tag = f"[{choice}]"
        if text.startswith(tag):
            return Action(choice=choice, content=text[len(tag) :].strip())
    return None
