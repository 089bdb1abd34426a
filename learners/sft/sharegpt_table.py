"""ShareGPT dialogues rendered as trajectory tables: the same ids and masks that a rollout of the dialogue
would give.

The policy's turns are its completions, token for token as `Renderer.encode` gives them and with the token
that ends a turn; all else is context, as the policy's own chat template renders it.
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
"""Special tokens in some tokenizers, and how a policy thinks and calls: what it says may hold them."""


def dialogues_table(dialogues: Sequence[SharedDialogue], *, gym: str, renderer: Renderer) -> pa.Table:
    """A group of one trajectory for each dialogue, ended by its environment and worth nothing: imitation
    reads no reward.

    Raises ValueError, one line, for a dialogue that the chat template refuses or that holds a special token.
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
        opening=dialogue.heard[0].content,
        turns=render_turns(dialogue, renderer=renderer),
        stop_reason=StopReason.TERMINATED,
    )
    return to_table(GroupOrder(group_id=dialogue.index, task_key=key, group_size=1, seed=0), [trajectory])


def _special_tokens(renderer: Renderer) -> re.Pattern[str]:
    """What the tokenizer would read in plain text as ends and roles, pads and pictures; longest first."""
    added = renderer.tokenizer.added_tokens_decoder.values()
    special = {renderer.stop_text, *renderer.tokenizer.all_special_tokens}
    special |= {token.content for token in added if token.special}
    return re.compile("|".join(map(re.escape, sorted(special, key=lambda token: (-len(token), token)))))


def _check_plain(dialogue: SharedDialogue, *, special: re.Pattern[str]) -> None:
    """Refuses text that would not be tokenised as text: it could end turns and forge others."""
    heard = [(f"before the policy's turn {i}", m.content) for i, m in enumerate(dialogue.heard, start=1)]
    said = [(f"the policy's turn {i}", OWN_MARKERS.sub(" ", t)) for i, t in enumerate(dialogue.said, start=1)]
    tools = json.dumps(dialogue.tools, ensure_ascii=False)
    for field, text in (("system", dialogue.system), ("tools", tools), *heard, *said):
        found = special.search(text)
        if found:
            raise ValueError(
                f"{dialogue.place}: {field}: its text holds {found[0]!r}, a special token of this policy: "
                "take it out, or leave the row out"
            )


def render_turns(dialogue: SharedDialogue, *, renderer: Renderer) -> list[Turn]:
    """The dialogue's turns in tokens. A template that changes earlier text forks it, as in a rollout."""
    try:
        return _render_turns(dialogue, renderer)
    except TemplateError as error:
        raise ValueError(
            f"{dialogue.place}: the policy's chat template refuses it ({' '.join(str(error).split())}): "
            "change the row, or leave it out"
        ) from None


def _render_turns(dialogue: SharedDialogue, renderer: Renderer) -> list[Turn]:
    opening = [Message(role="system", content=dialogue.system)] if dialogue.system else []
    rendered = renderer.begin([*opening, dialogue.heard[0]], tools=dialogue.tools)
    turns: list[Turn] = []
    for number, text in enumerate(dialogue.said):
        reply = dialogue.heard[number + 1] if number + 1 < len(dialogue.heard) else None
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
        if number + 1 < len(dialogue.said):
            assert reply is not None
            rendered = renderer.extend(
                rendered, completion_ids=completion.token_ids, message=read_completion(text), reply=reply
            )
    return turns
