"""Renderer between messages and token ids. Sampled tokens stay exactly as sampled.

A dialogue's ids only ever grow: by the completion's own ids, then by the template's text between them and the
next completion. If the chat template would change earlier text (by stripping a thought, say), the dialogue
forks into a new sample instead. Text from outside (rules, users, results) cannot make control tokens.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.chat_form import GYM_TOOLS, Tools, choose_form, stop_text_of
from actors.tool_call_parser import THOUGHT_END
from actors.trajectory import TokenIds, as_ids
from simulators.input_limits import whole_characters
from simulators.message import Action, Message

ROUND_TRIP = 'Caf\u00e9 for 2 people:\n"1, 2" <b>'
"""Text that a tokenizer must give back from its tokens."""
CONTENT_END = '"}}'
"""What follows the content in a call of `completion_of`."""
PLACEHOLDER = (
    "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}completion {}\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
)
"""In place of a completion when only the template's text around it is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dialogue:
    """A dialogue as the engine sees it. Grown by `Renderer.extend`, never edited."""

    messages: tuple[Message, ...]
    history: tuple[Message, ...] = field(repr=False)
    """`messages` with the policy's own in the form in which the template gets them again."""
    token_ids: TokenIds
    """Everything before the next completion."""
    context_ids: TokenIds
    """The part of `token_ids` after the last completion; all of it if `forked`."""
    forked: bool
    tools: Tools = field(repr=False)
    outline: tuple[Message, ...] = field(repr=False)
    """`history` with a placeholder for each completion."""
    outline_text: str = field(repr=False)
    """`outline` as the template renders it, up to the next completion."""


class Renderer:
    """Renders for one tokenizer and its chat template. Raises ValueError, one line, if there is no template,
    or if it cannot hold a dialogue with tool calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        name = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise ValueError(f"{name}: a policy needs a chat template; set one in tokenizer_config.json")
        self.tokenizer = tokenizer
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        eos = str(tokenizer.eos_token or "")
        self._control = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
        self.form = choose_form(self._apply, specials=specials, name=name)
        self.stop_text = stop_text_of(self.form, self._apply, specials=specials, eos=eos, name=name)
        """Text of the token that ends a completion."""
        self.stop_id = self._id_of(self.stop_text)
        self._end_ids = {self._id_of(token) for token in (self.stop_text, eos) if token}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Renderer":
        """Raises ValueError, one line, if the tokenizer does not give a text back from its tokens."""
        renderer = cls(AutoTokenizer.from_pretrained(str(folder)))
        told = renderer.tokenizer.decode(renderer.encode(ROUND_TRIP))
        if told != ROUND_TRIP:
            raise ValueError(
                f"{folder}: its tokenizer gives {told!r} back for {ROUND_TRIP!r}: load it with the class "
                "that it was made with"
            )
        return renderer

    def begin(self, messages: Sequence[Message], *, tools: Tools = GYM_TOOLS) -> Dialogue:
        """The dialogue before its first completion, with the tools that the policy may call."""
        text = self._render(messages, tools=tools)
        ids = as_ids(self.encode(text))
        return Dialogue(
            messages=tuple(messages),
            history=tuple(messages),
            token_ids=ids,
            context_ids=ids,
            forked=True,
            tools=tools,
            outline=tuple(messages),
            outline_text=text,
        )

    def extend(
        self, dialogue: Dialogue, *, completion_ids: TokenIds, message: Message, reply: Message
    ) -> Dialogue:
        """The dialogue after a completion, also given parsed as a `message`, and the environment's reply.

        The completion's ids are kept. If the template leaves the text before the completion as it was, only
        the text after it is tokenised; otherwise the whole dialogue is rendered again and `forked` is set.
        """
        messages = (*dialogue.messages, message, reply)
        said = message
        if not self.form.has_tools:
            said = Message(role="assistant", content=self.decode(completion_ids))
        placeholder = PLACEHOLDER.format(len(messages))
        outline = (*dialogue.outline, _with_placeholders(said, placeholder), reply)
        history = (*dialogue.history, said, reply)
        text = self._render(outline, tools=dialogue.tools)
        # A template that leaves thoughts out of earlier turns has lost one of the placeholders here.
        num_placeholders = 1 + (THOUGHT_END in said.content)
        is_kept = text.startswith(dialogue.outline_text) and text.count(placeholder) == num_placeholders
        tail = self._after_completion(placeholder, text) if is_kept else None
        if tail is None:
            ids = as_ids(self.encode(self._render(history, tools=dialogue.tools)))
            context = ids
        else:
            has_stop = len(completion_ids) > 0 and completion_ids[-1] == self.stop_id
            context = as_ids([*(() if has_stop else (self.stop_id,)), *self.encode(tail)])
            ids = np.concatenate([dialogue.token_ids, completion_ids, context])
        return Dialogue(
            messages=messages,
            history=history,
            token_ids=ids,
            context_ids=context,
            forked=tail is None,
            tools=dialogue.tools,
            outline=outline,
            outline_text=text,
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _id_of(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]

    def decode(self, token_ids: TokenIds) -> str:
        """The text of a completion without its stop token."""
        has_stop = len(token_ids) > 0 and token_ids[-1] in self._end_ids
        kept = token_ids[:-1] if has_stop else token_ids
        return str(self.tokenizer.decode(kept.tolist(), skip_special_tokens=False))

    def completion_of(self, action: Action) -> TokenIds:
        """The ids of an assistant turn with the action's thought and tool call, its stop token included."""
        return as_ids([*self.encode(_completion_text(action)), self.stop_id])

    def content_tokens(self, action: Action) -> list[bool]:  # [num_tokens]
        """Which tokens of `completion_of` the action hold some of its content."""
        text, content = _completion_text(action), json.dumps(action.content, ensure_ascii=False)[1:-1]
        start = text.rindex(content + CONTENT_END)
        end = start + len(content)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [*(first < end and last > start for first, last in encoded["offset_mapping"]), False]

    def _render(self, messages: Sequence[Message], *, tools: Tools) -> str:
        harmless = [
            message if message.role == "assistant" else self._harmless(message) for message in messages
        ]
        return self._apply(self.form.messages(harmless, tools=tools), self.form.tools(tools))

    def _apply(self, chat: Sequence[dict[str, Any]], tools: Tools) -> str:
        text = self.tokenizer.apply_chat_template(
            list(chat),
            tools=list(tools) or None,  # type: ignore[arg-type]
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(text)

    def _harmless(self, message: Message) -> Message:
        """The message with a space inside each control token that its text spells, or in place of one that is
        a single character, and with whole characters."""
        text = whole_characters(message.content)
        content = self._control.sub(_split, text)
        return message if content == message.content else replace(message, content=content)

    def _after_completion(self, placeholder: str, text: str) -> str | None:
        """The template's text after the completion's stop token; None if it puts no stop token there."""
        _, found, rest = text.partition(placeholder)
        _, stop, tail = rest.partition(self.stop_text)
        return tail if found and stop else None


def _completion_text(action: Action) -> str:
    thought = f"<think>{action.thought}</think>" if action.thought else ""
    return f"{thought}{action.to_call()}"


def _split(control_token: re.Match[str]) -> str:
    first, rest = control_token[0][0], control_token[0][1:]
    return f"{first} {rest}" if rest else " "


def _with_placeholders(message: Message, placeholder: str) -> Message:
    """The message with its call's content, or its text, replaced, and its thought if it has one."""
    thought = f"<think>\n{placeholder}\n{THOUGHT_END}\n\n" if THOUGHT_END in message.content else ""
    if message.action is None and not message.calls:
        return Message(role="assistant", content=f"{thought}{placeholder}")
    action = Action(choice="action", content=placeholder)
    return Message(role="assistant", content=thought, action=action)
