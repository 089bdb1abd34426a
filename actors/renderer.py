"""Messages to token ids and back, so that what was sampled stays as sampled.

A dialogue's ids only ever grow: the completion's own ids, then the template's text between them and the next
completion. Where the chat template would change earlier text (a stripped thought, say), the dialogue forks
into a new sample instead.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.tool_call_parser import call_texts
from actors.trajectory import TokenIds, as_ids
from simulators.input_limits import load_json
from simulators.message import CHOICES, TOOL_NAME, TOOL_SCHEMA, Action, Message, ToolCall

Tools = tuple[dict[str, Any], ...]
"""Tool schemas in OpenAI's form, as templates take them."""
GYM_TOOLS: Tools = (TOOL_SCHEMA,)
THOUGHT_END = "</think>"
MAX_CALL_CHARS = 100_000
"""Of a call as it is written. A longer one is none."""
CALL_END = '"}}'
"""What follows the content in a call that we write."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""What JSON can escape but no text can hold: it would break the tokenizer and every table that stores it."""
MARK = (
    "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}completion {}\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
)
"""Stands for a completion where only the text around it is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dialogue:
    """A dialogue as the engine sees it. Grown by `Renderer.extend`, never edited."""

    messages: tuple[Message, ...]
    token_ids: TokenIds
    """Everything before the next completion."""
    context_ids: TokenIds
    """The part of `token_ids` after the last completion; all of it where `forked`."""
    forked: bool
    tools: Tools = field(repr=False)
    marked: tuple[dict[str, Any], ...] = field(repr=False)
    """The chat messages with a mark for each completion."""
    marked_text: str = field(repr=False)
    """`marked` as the template renders it, up to the next completion."""


class Renderer:
    """Renders for one tokenizer and its chat template. Raises ValueError if it has no template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise ValueError(
                f"{tokenizer.name_or_path}: a policy needs a chat template; set one in tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.stop_text: str = str(tokenizer.eos_token)
        self.stop_id: int = tokenizer.convert_tokens_to_ids(self.stop_text)  # type: ignore[assignment]

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Renderer":
        return cls(AutoTokenizer.from_pretrained(str(folder)))

    def begin(self, messages: Sequence[Message], *, tools: Tools = GYM_TOOLS) -> Dialogue:
        """The dialogue before its first completion; `tools` are what the policy is told it may call."""
        chat = tuple(message.to_chat() for message in messages)
        text = self._render(chat, tools=tools)
        ids = as_ids(self.encode(text))
        return Dialogue(
            messages=tuple(messages),
            token_ids=ids,
            context_ids=ids,
            forked=True,
            tools=tools,
            marked=chat,
            marked_text=text,
        )

    def extend(
        self, dialogue: Dialogue, *, completion_ids: TokenIds, said: Message, reply: Message
    ) -> Dialogue:
        """The dialogue after a completion (`said`, as parsed) and the environment's reply to it.

        The completion's ids are kept. If the template leaves the text before the completion as it was, only
        the text after it is tokenised; otherwise the whole dialogue is rendered anew and `forked` is set.
        """
        messages = (*dialogue.messages, said, reply)
        mark = MARK.format(len(messages))
        marked = (*dialogue.marked, _marked(said, mark), reply.to_chat())
        text = self._render(marked, tools=dialogue.tools)
        # A template that leaves thoughts out of earlier turns has lost one of the marks here.
        num_marks = 1 + (THOUGHT_END in said.content)
        kept = text.startswith(dialogue.marked_text) and text.count(mark) == num_marks
        tail = self._after(mark, text) if kept else None
        if tail is None:
            chat = [message.to_chat() for message in messages]
            ids = as_ids(self.encode(self._render(chat, tools=dialogue.tools)))
            context = ids
        else:
            has_stop = len(completion_ids) > 0 and completion_ids[-1] == self.stop_id
            context = as_ids([*(() if has_stop else (self.stop_id,)), *self.encode(tail)])
            ids = np.concatenate([dialogue.token_ids, completion_ids, context])
        return Dialogue(
            messages=messages,
            token_ids=ids,
            context_ids=context,
            forked=tail is None,
            tools=dialogue.tools,
            marked=marked,
            marked_text=text,
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: TokenIds) -> str:
        """The text of a completion, its stop token left out."""
        has_stop = len(token_ids) > 0 and token_ids[-1] == self.stop_id
        kept = token_ids[:-1] if has_stop else token_ids
        return str(self.tokenizer.decode(kept.tolist(), skip_special_tokens=False))

    def completion_of(self, action: Action) -> TokenIds:
        """The ids of an assistant turn that thinks and makes this tool call, its stop token included."""
        return as_ids([*self.encode(_completion_text(action)), self.stop_id])

    def content_tokens(self, action: Action) -> list[bool]:  # [num_tokens]
        """Which tokens of `completion_of` the action hold some of its content."""
        text, content = _completion_text(action), json.dumps(action.content, ensure_ascii=False)[1:-1]
        start = text.rindex(content + CALL_END)
        end = start + len(content)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [*(first < end and last > start for first, last in encoded["offset_mapping"]), False]

    def _render(self, chat: Sequence[dict[str, Any]], *, tools: Tools) -> str:
        text = self.tokenizer.apply_chat_template(
            list(chat),
            tools=list(tools) or None,  # type: ignore[arg-type]
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(text)

    def _after(self, mark: str, text: str) -> str | None:
        """What the template puts after the completion's stop token; None if it has no such place."""
        _, found, rest = text.partition(mark)
        _, stop, tail = rest.partition(self.stop_text)
        return tail if found and stop else None


def parse_tool_call(text: str) -> Action | None:
    """The first tool call after the thought (Qwen3's form); None unless it is JSON of the tool's schema."""
    _, thought_ended, rest = text.partition(THOUGHT_END)
    found = next(call_texts(rest if thought_ended else text), None)
    if found is None:
        return None
    try:
        call = load_json(found, max_chars=MAX_CALL_CHARS)
    except ValueError:
        return None
    arguments = call.get("arguments")
    if call.get("name") != TOOL_NAME or not isinstance(arguments, dict):
        return None
    choice, content = arguments.get("choice"), arguments.get("content")
    if choice not in CHOICES or not isinstance(content, str) or LONE_SURROGATE.search(content):
        return None
    return Action(choice=choice, content=content)


def _completion_text(action: Action) -> str:
    thought = f"<think>{action.thought}</think>" if action.thought else ""
    return f"{thought}{action.to_call()}"


def read_completion(text: str) -> Message:
    """What a completion says, as the template takes it, whatever tools it calls.

    A call of the gyms' tool is read as in a rollout: the first one alone. Other calls are read if all of
    them are JSON; else the text is but text.
    """
    action = parse_tool_call(text)
    if action is not None:
        return Message(role="assistant", content=spoken(text), action=action)
    calls = _parse_calls(text)
    return Message(role="assistant", content=spoken(text) if calls else text, calls=calls)


def spoken(text: str) -> str:
    """The completion without its tool call."""
    return text.partition("<tool_call>")[0].strip()


def _parse_calls(text: str) -> tuple[ToolCall, ...]:
    """All calls after the thought; none unless each is an object with a name and arguments."""
    _, thought_ended, rest = text.partition(THOUGHT_END)
    calls: list[ToolCall] = []
    for found in call_texts(rest if thought_ended else text):
        try:
            call = load_json(found, max_chars=MAX_CALL_CHARS)
        except ValueError:
            return ()
        name, arguments = call.get("name"), call.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return ()
        calls.append(ToolCall(name=name, arguments=arguments))
    return tuple(calls)


def _marked(said: Message, mark: str) -> dict[str, Any]:
    """The message with marks for its call's content, or its text, and for its thought where it has one."""
    thought = f"<think>\n{mark}\n{THOUGHT_END}\n\n" if THOUGHT_END in said.content else ""
    if said.action is None and not said.calls:
        return Message(role="assistant", content=f"{thought}{mark}").to_chat()
    action = Action(choice="action", content=mark)
    return Message(role="assistant", content=thought, action=action).to_chat()
