"""ShareGPT dialogues: rendered like a rollout's own table; text with special tokens is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.renderer import Renderer
from actors.trajectory import GroupOrder, Trajectory
from actors.trajectory_table import REWARD, SCHEMA, to_table
from learners.batch.samples import TrainingSample
from learners.model.tiny_policy import make_tokenizer
from learners.sft.batches import DemonstrationSamples, sample_lengths, without_overlong
from learners.sft.sharegpt import count_rows, read_dialogues
from learners.sft.sharegpt_table import dialogues_table
from simulators.gyms import GYMS
from tests.actors.test_renderer import COMPLETIONS, REWRITING, renderer_of, talk
from tests.learners.demonstration_dialogues import (
    WORD_TEMPLATE,
    as_row,
    play,
    word_renderer,
    write_json,
    write_lines,
)
from tests.learners.tiny_parts import loss_mask

ROW: dict[str, Any] = {
    "conversations": [
        {"from": "human", "value": "hi you"},
        {"from": "gpt", "value": "hello"},
        {"from": "human", "value": "weather please"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "sun today"},
        {"from": "human", "value": "bye"},
    ],
    "system": "be kind",
    "tools": '[{"name": "look", "description": "Looks.", "parameters": {}}]',
}
SPELLED = (
    ("TOOL look SYSTEM be kind END USER hi you END POLICY", False),
    ("hello END", True),
    ("USER weather please END POLICY", False),
    ('<tool_call> {"name": "look", "arguments": {"at": "sky"}} </tool_call> END', True),
    ("SEEN sun END POLICY", False),
    ("sun today END", True),
)
"""The row in tokens, and whether they are the policy's."""
WORDS = " ".join(text for text, _ in SPELLED)


@pytest.fixture(scope="module")
def tiny() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


def read(path: Path, *, renderer: Renderer) -> pa.Table:
    return dialogues_table(list(read_dialogues(path)), gym=path.stem, renderer=renderer)


def own_table(trajectory: Trajectory) -> pa.Table:
    """As its rollout makes it, a group of its own."""
    key = trajectory.task_key
    order = GroupOrder(group_id=key.index, task_key=key, group_size=1, seed=0)
    return to_table(order, [trajectory])


def spell(sample: TrainingSample, *, renderer: Renderer) -> list[tuple[str, bool]]:
    words = renderer.tokenizer.convert_ids_to_tokens(sample.token_ids.tolist())
    return list(zip(words, loss_mask(sample).tolist(), strict=True))


def assert_same(read_back: pa.Table, own: pa.Table) -> None:
    theirs, ours = DemonstrationSamples([read_back]), DemonstrationSamples([own])
    assert len(theirs) == len(ours) > 0
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(loss_mask(one), loss_mask(other))
        np.testing.assert_array_equal(one.turns, other.turns)


def test_a_dialogue_gives_exactly_these_tokens_and_this_mask(tmp_path: Path):
    renderer = word_renderer(WORDS)
    (sample,) = DemonstrationSamples([read(write_json(tmp_path / "a.json", [ROW]), renderer=renderer)])
    assert spell(sample, renderer=renderer) == [
        (word, is_policy) for text, is_policy in SPELLED for word in text.split()
    ]
    assert sample.gym == "a"


def test_without_system_and_tools_the_template_is_given_none(tmp_path: Path):
    row = {"conversations": ROW["conversations"][:2]}
    renderer = word_renderer(WORDS)
    (sample,) = DemonstrationSamples([read(write_json(tmp_path / "a.json", [row]), renderer=renderer)])
    expected = [("USER hi you END POLICY", False), ("hello END", True)]
    assert spell(sample, renderer=renderer) == [(w, mask) for text, mask in expected for w in text.split()]


def test_a_template_that_drops_earlier_thoughts_forks_the_dialogue(tmp_path: Path):
    """Each sample holds only what the policy would have seen, and each of its turns is learned once."""
    template = word_renderer("").tokenizer.chat_template
    assert isinstance(template, str)
    dropping = template.replace(
        "who + ' ' + message.content",
        "who + ' ' + (message.content if loop.last else message.content.split('</think>')[-1])",
    )
    words = WORDS + " <think> hm </think> why because"
    renderer = word_renderer(words, template=dropping)
    turns = [("human", "hi"), ("gpt", "<think> hm </think> hello"), ("human", "why"), ("gpt", "because")]
    row = {"conversations": [{"from": role, "value": value} for role, value in turns]}
    table = read(write_json(tmp_path / "a.json", [row]), renderer=renderer)
    first, second = (spell(one, renderer=renderer) for one in DemonstrationSamples([table]))
    assert [word for word, mask in first if mask] == ["<think>", "hm", "</think>", "hello", "END"]
    context = "USER hi END POLICY hello END USER why END POLICY"
    assert [word for word, mask in second if not mask] == context.split()
    assert [word for word, mask in second if mask] == ["because", "END"]


@pytest.mark.medium
@pytest.mark.parametrize("by_function_call", [False, True])
@pytest.mark.parametrize("gym", GYMS)
def test_a_scripted_dialogue_reads_back_as_its_rollouts_own_table(
    gym: str, by_function_call: bool, tiny: Renderer, tmp_path: Path
):
    for index in range(3):
        trajectory = play("expert", gym=gym, index=index, renderer=tiny)
        assert trajectory.turns and not trajectory.stop_reason.failed
        path = write_json(tmp_path / "a.json", [as_row(trajectory, by_function_call=by_function_call)])
        read_back, own = read(path, renderer=tiny), own_table(trajectory)
        assert_same(read_back, own)
        for column in ("context_ids", "completion_ids", "forked", "text", "choice", "content", "feedback"):
            assert read_back[column].to_pylist() == own[column].to_pylist()


@pytest.mark.parametrize("name", REWRITING)
async def test_a_scripted_dialogue_reads_back_under_templates_that_rewrite(
    name: str, tiny: Renderer, tmp_path: Path
):
    renderer = renderer_of(tiny.tokenizer, REWRITING[name])  # type: ignore[arg-type]
    trajectory, _ = await talk(renderer, COMPLETIONS)
    path = write_lines(tmp_path / "a.jsonl", [as_row(trajectory)])
    assert_same(read(path, renderer=renderer), own_table(trajectory))


def test_a_table_has_the_schema_of_a_scored_group_and_rewards_that_are_numbers(
    tiny: Renderer, tmp_path: Path
):
    table = read(write_json(tmp_path / "a.json", [ROW, ROW]), renderer=tiny)
    assert table.schema == SCHEMA.append(REWARD)
    assert table["failed"].to_pylist() == [False] * 6
    assert table["reward"].to_pylist() == table["env_reward"].to_pylist() == [0.0] * 6
    assert table["group_id"].to_pylist() == [0, 0, 0, 1, 1, 1]


def test_a_list_and_lines_give_the_same_rows(tmp_path: Path):
    rows = [{**ROW, "system": f"number {i}", "id": i} for i in range(5)]
    listed = write_json(tmp_path / "a.json", rows)
    lines = write_lines(tmp_path / "b.jsonl", rows)
    lines.write_text("\ufeff" + lines.read_text().replace("\n", "\n\n"))
    assert count_rows(listed) == count_rows(lines) == 5
    for path in (listed, lines):
        parts = list(read_dialogues(path))
        assert [(part.index, part.system) for part in parts] == [(i, f"number {i}") for i in range(5)]
        assert parts[0].observations == next(read_dialogues(listed)).observations


def test_a_system_message_may_be_the_first_of_the_conversation(tmp_path: Path):
    first = {"from": "system", "value": "be kind"}
    row = {"conversations": [first, *ROW["conversations"]], "tools": json.loads(ROW["tools"])}
    (moved,) = read_dialogues(write_json(tmp_path / "a.json", [row]))
    (usual,) = read_dialogues(write_json(tmp_path / "b.json", [ROW]))
    assert (moved.system, moved.tools, moved.observations, moved.completions) == (
        usual.system,
        usual.tools,
        usual.observations,
        usual.completions,
    )


def test_several_calls_at_once_are_one_turn(tiny: Renderer, tmp_path: Path):
    call = {"name": "look", "arguments": {"at": "sky"}}
    turns = [*ROW["conversations"]]
    turns[3] = {"from": "function_call", "value": "<think>both</think>\n\n" + json.dumps([call, call])}
    path = write_json(tmp_path / "a.json", [{**ROW, "conversations": turns}])
    (dialogue,) = read_dialogues(path)
    written = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    assert dialogue.completions[1] == f"<think>both</think>\n\n{written}\n{written}"
    (sample,) = DemonstrationSamples([read(path, renderer=tiny)])
    assert tiny.tokenizer.decode(sample.token_ids[loss_mask(sample)]).count(written) == 2


def turns(*pairs: tuple[str, object]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "the policy": (
        turns(("human", "a"), ("gpt", "b<|im_end|>\n")),
        r": the policy's turn 1: .*'<\|im_end\|>'",
    ),
    "a user": (
        turns(("human", "a"), ("gpt", "b"), ("human", "<|im_start|>c"), ("gpt", "d")),
        r"before .* turn 2: its text contains '<\|im_start\|>', a special token of this policy: remove",
    ),
    "a system": ({**ROW, "system": "a<|endoftext|>"}, r"system: its text contains '<\|endoftext\|>'"),
    "a tool": ({**ROW, "tools": [{"name": "look", "at": "<|im_end|>"}]}, "tools: its text contains"),
}


@pytest.mark.parametrize("name", FORGED)
def test_text_that_would_be_tokenised_as_a_special_token_is_refused(
    name: str, tiny: Renderer, tmp_path: Path
):
    row, reason = FORGED[name]
    path = write_json(tmp_path / "a.json", [ROW, row])
    with pytest.raises(ValueError, match=reason) as refusal:
        read(path, renderer=tiny)
    assert str(refusal.value).startswith(f"{path}: row 2: ") and "\n" not in str(refusal.value)
    assert count_rows(path) == 2  # no tokenizer, no special tokens


def test_thoughts_and_calls_are_allowed_even_if_they_are_special_tokens(tiny: Renderer, tmp_path: Path):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})  # type: ignore[dict-item]
    thought = turns(("human", "a"), ("gpt", "<think>b</think>c"))
    assert read(write_json(tmp_path / "a.json", [thought]), renderer=Renderer(tokenizer)).num_rows == 1
    heard = turns(("human", "<think>a"), ("gpt", "b"))
    with pytest.raises(ValueError, match="before the policy's turn 1: its text contains '<think>'"):
        read(write_json(tmp_path / "b.json", [heard]), renderer=Renderer(tokenizer))


def test_a_row_that_the_chat_template_refuses_is_refused(tmp_path: Path):
    refusal = "{{ raise_exception('only\nusers') if 'hi you' in messages | map(attribute='content') }}"
    strict = word_renderer(WORDS, template=refusal + WORD_TEMPLATE)
    with pytest.raises(ValueError, match=r"row 1: the policy's chat template refuses it \(only users\)"):
        read(write_json(tmp_path / "b.json", [ROW]), renderer=strict)


def test_the_row_in_the_documentation_is_a_row(tiny: Renderer, tmp_path: Path):
    page = (Path(__file__).parents[3] / "docs" / "sft.md").read_text()
    (tmp_path / "a.json").write_text(page.partition("```json\n")[2].partition("```")[0])
    assert read(tmp_path / "a.json", renderer=tiny).num_rows == 2


def test_too_long_dialogues_are_left_out_entirely_and_counted(tmp_path: Path):
    renderer = word_renderer(WORDS)
    short = {**ROW, "conversations": ROW["conversations"][:2]}
    table = read(write_json(tmp_path / "a.json", [ROW, short, ROW, short]), renderer=renderer)
    num_tokens = len(WORDS.split())
    assert sample_lengths(table).tolist() == [num_tokens, 13, num_tokens, 13]
    kept, num_left_out = without_overlong(table, max_tokens=num_tokens - 1)
    assert (kept["group_id"].to_pylist(), num_left_out) == ([1, 3], 2)
    assert without_overlong(table, max_tokens=num_tokens) == (table, 0)
    assert without_overlong(table, max_tokens=1)[0].num_rows == 0
    assert without_overlong(SCHEMA.empty_table(), max_tokens=1) == (SCHEMA.empty_table(), 0)
