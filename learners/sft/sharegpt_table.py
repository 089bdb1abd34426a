"""ShareGPT dialogues rendered as trajectory tables, with the same ids and masks as a rollout of the dialogue.

The policy's turns are completions, as encoded by `Renderer.encode` plus the end-of-turn token; the rest is
context, rendered by the policy's chat template.
"""

import json
import re
from collections.abc import Sequence

import pyarrow as pa
from jinja2.exceptions import TemplateError

from actors.renderer import Renderer
from actors.tool_call_parser import parse_tool_call, read_completion
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn
from actors.trajectory_table import REWARD, SCHEMA, to_table
from learners.sft.sharegpt import SharedDialogue
from simulators.message import Message
from simulators.task import TaskKey

OWN_MARKERS = re.compile("</?think>|</?tool_call>")
"""Special tokens of some tokenizers that a policy's turn may contain."""


def dialogues_table(dialogues: Sequence[SharedDialogue], *, gym: str, renderer: Renderer) -> pa.Table:
    """One group with one trajectory per dialogue, terminated, with rewards of 0, which SFT does not use.

    Raises ValueError, one line, for a dialogue that the chat template refuses or that contains a special
    token.
    """
    special = _special_tokens(renderer)
    for dialogue in dialogues:
        _check_plain(dialogue, special=special)
    tables = [_table(dialogue, gym=gym, renderer=renderer) for dialogue in dialogues]
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return table.append_column(REWARD, pa.array([0.0] * table.num_rows, REWARD.type))


def _table(dialogue: SharedDialogue, *, gym: str, renderer: Renderer) -> pa.Table:
    key = TaskKey(gym=gym, split="train", index=dialogue.index, seed=0, difficulty=0)
    trajectory = Trajectory(
        task_key=key,
        system=dialogue.system,
        opening=dialogue.observations[0].content,
        turns=render_turns(dialogue, renderer=renderer),
        stop_reason=StopReason.TERMINATED,
    )
    return to_table(GroupOrder(group_id=dialogue.index, task_key=key, group_size=1, seed=0), [trajectory])


def _special_tokens(renderer: Renderer) -> re.Pattern[str]:
    """Matches the tokenizer's special tokens in text; longest first."""
    added = renderer.tokenizer.added_tokens_decoder.values()
    special = {renderer.stop_text, *renderer.tokenizer.all_special_tokens}
    special |= {token.content for token in added if token.special}
    return re.compile("|".join(map(re.escape, sorted(special, key=lambda token: (-len(token), token)))))


def _check_plain(dialogue: SharedDialogue, *, special: re.Pattern[str]) -> None:
    """Refuses special tokens in text, which could end turns and forge others."""
    observations = [
        (f"before the policy's turn {i}", message.content)
        for i, message in enumerate(dialogue.observations, start=1)
    ]
    completions = [
        (f"the policy's turn {i}", OWN_MARKERS.sub(" ", text))
        for i, text in enumerate(dialogue.completions, start=1)
    ]
    tools = json.dumps(dialogue.tools, ensure_ascii=False)
    for field, text in (("system", dialogue.system), ("tools", tools), *observations, *completions):
        found = special.search(text)
        if found:
            raise ValueError(
                f"{dialogue.place}: {field}: its text contains {found[0]!r}, a special token of this policy: "
                "remove it, or leave the row out"
            )


def render_turns(dialogue: SharedDialogue, *, renderer: Renderer) -> list[Turn]:
    """The dialogue's turns in tokens. A chat template that changes earlier text causes a fork, as in a
    rollout."""
    try:
        return _render_turns(dialogue, renderer)
    except TemplateError as error:
        raise ValueError(
            f"{dialogue.place}: the policy's chat template refuses it ({' '.join(str(error).split())}): "
            "change the row, or leave it out"
        ) from None


def _render_turns(dialogue: SharedDialogue, renderer: Renderer) -> list[Turn]:
    opening = [Message(role="system", content=dialogue.system)] if dialogue.system else []
    rendered = renderer.begin([*opening, dialogue.observations[0]], tools=dialogue.tools)
    turns: list[Turn] = []
    for number, text in enumerate(dialogue.completions):
        reply = dialogue.observations[number + 1] if number + 1 < len(dialogue.observations) else None
        completion = Completion.scripted([*renderer.encode(text), renderer.stop_id])
        turns.append(
            Turn(
                context_ids=rendered.context_ids,
                forked=rendered.forked,
                completion=completion,
                text=text,
                action=parse_tool_call(text),
                feedback=reply.content if reply else "",
                reward=0.0,
            )
        )
        if number + 1 < len(dialogue.completions):
            assert reply is not None
            rendered = renderer.extend(
                rendered, completion_ids=completion.token_ids, message=read_completion(text), reply=reply
            )
    return turns
