"""Dialogues for the tests of demonstrations: played without Ray, and written as ShareGPT rows."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.engines.protocol import Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout
from actors.scripts import Script
from actors.trajectory import Trajectory
from learners.buffer.archive import with_outcomes, write_tables
from learners.buffer.ledger import TRAINED
from simulators.gyms import GYMS
from simulators.message import TOOL_SCHEMA
from simulators.task import TaskKey
from simulators.users.rule_user import RuleUser

WORD_TEMPLATE = """\
{%- for tool in tools or [] %}{{ 'TOOL ' + tool.function.name + ' ' }}{% endfor %}
{%- for message in messages %}
  {%- set who = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'POLICY', 'tool': 'SEEN'}[message.role] %}
  {{- who + ' ' + message.content + ' ' }}
  {%- for call in message.tool_calls or [] %}{{- '<tool_call> ' + call.function | tojson + ' </tool_call> ' }}
  {%- endfor %}
  {{- 'END ' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'POLICY' }}{% endif %}"""


def word_renderer(words: str, *, template: str = WORD_TEMPLATE) -> Renderer:
    """A tokenizer whose tokens are these words and no other, so that ids can be spelled out."""
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(["?", *words.split()]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return Renderer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="END", chat_template=template)
    )


def play(script: Script, *, gym: str, index: int, renderer: Renderer, max_tokens: int = 4096) -> Trajectory:
    """A scripted policy's dialogue with the gym's own user."""
    key = TaskKey(gym=gym, split="train", index=index, seed=0, difficulty=0)
    context = RolloutContext(
        engine_for=lambda task, seed: ScriptedEngine(
            script, gym=GYMS[task.key.gym], task=task, renderer=renderer, seed=seed
        ),
        user=RuleUser(),
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=8),
        gyms=GYMS,
        personas="plain",
        max_turns=None,
        max_tokens=max_tokens,
    )
    return asyncio.run(rollout(key, context, seed=index))


def as_row(trajectory: Trajectory, *, by_function_call: bool = False) -> dict[str, Any]:
    """The trajectory as a ShareGPT row, with the reply to its last turn."""
    conversations = [{"from": "human", "value": trajectory.opening}]
    for turn in trajectory.turns:
        said = {"from": "gpt", "value": turn.text}
        if by_function_call:
            thought, end, rest = turn.text.rpartition("</think>")
            call = rest.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
            said = {"from": "function_call", "value": thought + end + call}
        conversations += [said, {"from": "observation", "value": turn.feedback}]
    return {
        "conversations": conversations,
        "system": trajectory.system,
        "tools": json.dumps([TOOL_SCHEMA]),
    }


def write_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_archive(run: Path, step: int, tables: Sequence[pa.Table]) -> Path:
    """One step's file of a run folder, as the run itself writes it; all of it was trained."""
    path = run / "trajectories" / f"step-{step:05d}.parquet"
    write_tables(path, [with_outcomes(table, outcomes=[TRAINED] * 64, step=step) for table in tables])
    return path
