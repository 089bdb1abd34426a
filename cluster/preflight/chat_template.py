"""Check of a model folder's chat template, read from its files without loading the tokenizer: whether it can
hold a dialogue with tool calls, and which token ends a completion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.chat_form import ChatForm, Tools, choose_form, stop_text_of
from cluster.config.recipe import BadInput

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Names under which templates read special tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateFiles:
    """What a folder says of its chat template."""

    templates: Mapping[str, str]
    """By name; `default`, and perhaps `tool_use`. Empty: there is none."""
    tokens: Mapping[str, str]
    """Special tokens by the name under which templates read them."""
    specials: Sequence[str]
    """All special tokens of the vocabulary."""

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Tools) -> str:
        """As the tokenizer's `apply_chat_template`. Raises what the template raises."""
        from transformers.utils.chat_template_utils import render_jinja_template

        name = "tool_use" if tools and "tool_use" in self.templates else "default"
        variables: dict[str, Any] = {**self.tokens, "add_generation_prompt": True}
        rendered = render_jinja_template(
            [list(messages)],  # type: ignore[arg-type]
            tools=list(tools) or None,
            chat_template=self.templates[name],
            **variables,
        )
        return str(rendered[0][0])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no file. Raises `BadInput` if it is not JSON."""
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not JSON ({error}): copy the model folder again") from None
    return read if isinstance(read, dict) else {}


def read_template(folder: Path) -> TemplateFiles:
    """Raises `BadInput` for a file that is not JSON."""
    config, tokenizer = read_json(folder / "tokenizer_config.json"), read_json(folder / "tokenizer.json")
    found = config.get("chat_template") or {}
    templates = {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else {}
    if isinstance(found, str):
        templates["default"] = found
    file = folder / "chat_template.jinja"
    if file.is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    tokens = {name: _text(config[name]) for name in SPECIAL if config.get(name)}
    added = [*config.get("added_tokens_decoder", {}).values(), *tokenizer.get("added_tokens", ())]
    specials = [token["content"] for token in added if token.get("special")]
    return TemplateFiles(
        templates=templates, tokens=tokens, specials=list(dict.fromkeys([*specials, *tokens.values()]))
    )


def check_template(folder: Path, *, key: str) -> tuple[ChatForm, str]:
    """The form in which the template gets dialogues, and the token that ends a completion. Raises `BadInput`
    if there is no template, or if it cannot hold a dialogue."""
    files = read_template(folder)
    if "default" not in files.templates:
        raise BadInput(
            f"{key}={str(folder)!r}: its tokenizer has no chat template: add chat_template.jinja, "
            "or use the model's instruct version"
        )
    try:
        form = choose_form(files.render, specials=files.specials, name=f"{key}={str(folder)!r}")
        eos = files.tokens.get("eos_token", "")
        return form, stop_text_of(
            form, files.render, specials=files.specials, eos=eos, name=f"{key}={str(folder)!r}"
        )
    except ValueError as error:
        raise BadInput(str(error)) from None


def _text(token: object) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)
