"""Engine that plays a model behind an OpenAI-compatible endpoint: sends messages and the tool, returns
tokens.

The ids are those of the renderer's own tokenizer, not of the model, and the logprobs are zero: its
trajectories are evaluated and never trained.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engines.protocol import CompletionRequest, EngineError
from actors.renderer import Renderer
from actors.tool_call_parser import MAX_CALL_CHARS, to_action
from actors.trajectory import Completion
from simulators.input_limits import LONE_SURROGATE, load_json
from simulators.llm_client.client import ChatClient, ChatConfig, ChatReply
from simulators.message import TOOL_NAME, TOOL_SCHEMA, Action, Message
from simulators.user import SimulatorError

TAGS = re.compile("</?(?:tool_call|think)>")


class OpenAIEngine:
    """Samples from the endpoint's model. Implements `PolicyEngine`; one may serve many dialogues at once."""

    def __init__(self, chat: ChatClient, *, renderer: Renderer):
        self._chat = chat
        self._renderer = renderer

    @classmethod
    def connect(cls, folder: str | Path, config: ChatConfig) -> "OpenAIEngine":
        """With the tokenizer in `folder`. Raises ValueError if the endpoint's key is not in the
        environment."""
        return cls(ChatClient(config), renderer=Renderer.from_folder(folder))

    async def complete(self, request: CompletionRequest) -> Completion:
        """The first tool call, or the text if there is none. Raises `EngineError` if the endpoint fails."""
        problem, reply = "", None
        try:
            reply = await self._chat.complete(
                to_chat(request.messages), seed=request.seed, tools=[TOOL_SCHEMA]
            )
        except SimulatorError as error:  # the client is shared with simulated users
            problem = str(error)
        if reply is None:  # outside the `except`, so that the endpoint's error is not chained to this one
            raise EngineError(problem)
        return Completion.scripted(self._ids(reply))

    def _ids(self, reply: ChatReply) -> list[int]:
        # The text may quote a call, which must not be parsed as one, or the token that ends a turn.
        text = TAGS.sub(" ", LONE_SURROGATE.sub(" ", reply.text)).replace(self._renderer.stop_text, " ")
        ids = self._renderer.encode(text) if text.strip() else []
        action = read_action(reply)
        call = self._renderer.completion_of(action).tolist() if action else [self._renderer.stop_id]
        return [*ids, *call]


def to_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The dialogue in OpenAI's form: calls have ids, arguments are JSON text, tool replies name their
    call."""
    chat: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.action is not None:
            arguments = {"choice": message.action.choice, "content": message.action.content}
            function = {"name": TOOL_NAME, "arguments": json.dumps(arguments, ensure_ascii=False)}
            entry["tool_calls"] = [{"id": f"call-{index}", "type": "function", "function": function}]
        elif message.role == "tool":
            entry["tool_call_id"] = f"call-{index - 1}"
        chat.append(entry)
    return chat


def read_action(reply: ChatReply) -> Action | None:
    """The first tool call as an action; None if there is none, or it does not fit the tool's schema."""
    if not reply.tool_calls:
        return None
    name, text = reply.tool_calls[0]
    try:
        return to_action(name, load_json(text, max_chars=MAX_CALL_CHARS))
    except ValueError:
        return None
