"""ShareGPT files: what is not understood is refused in one line, and what is understood is the rollout's own
table."""

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.renderer import Renderer
from actors.table import REWARD, SCHEMA, to_table
from actors.trajectory import GroupOrder, Trajectory
from learners import json_rows
from learners.samples import TrainingSample
from learners.sft import Demonstrations, sample_lengths, without_overlong
from learners.sharegpt import count_rows, read_dialogues
from learners.sharegpt_table import dialogues_table
from learners.tiny_policy import make_tokenizer
from simulators.gyms import GYMS
from tests.actors.test_renderer import REWRITING, SPOKEN, renderer_of, talk
from tests.learners.dialogues import as_row, play, word_renderer, write_json, write_lines

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
    return list(zip(words, sample.loss_mask.tolist(), strict=True))


def assert_same(read_back: pa.Table, own: pa.Table) -> None:
    theirs, ours = Demonstrations([read_back]), Demonstrations([own])
    assert len(theirs) == len(ours) > 0
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.loss_mask, other.loss_mask)
        np.testing.assert_array_equal(one.turns, other.turns)


def test_a_dialogue_gives_exactly_these_tokens_and_this_mask(tmp_path: Path):
    renderer = word_renderer(WORDS)
    (sample,) = Demonstrations([read(write_json(tmp_path / "a.json", [ROW]), renderer=renderer)])
    assert spell(sample, renderer=renderer) == [
        (word, is_policy) for text, is_policy in SPELLED for word in text.split()
    ]
    assert sample.gym == "a"


def test_without_system_and_tools_the_template_is_given_none(tmp_path: Path):
    row = {"conversations": ROW["conversations"][:2]}
    renderer = word_renderer(WORDS)
    (sample,) = Demonstrations([read(write_json(tmp_path / "a.json", [row]), renderer=renderer)])
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
    first, second = (spell(one, renderer=renderer) for one in Demonstrations([table]))
    assert [word for word, mask in first if mask] == ["<think>", "hm", "</think>", "hello", "END"]
    context = "USER hi END POLICY hello END USER why END POLICY"
    assert [word for word, mask in second if not mask] == context.split()
    assert [word for word, mask in second if mask] == ["because", "END"]


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
async def test_it_reads_back_so_under_templates_that_rewrite(name: str, tiny: Renderer, tmp_path: Path):
    renderer = renderer_of(tiny.tokenizer, REWRITING[name])  # type: ignore[arg-type]
    trajectory, _ = await talk(renderer, SPOKEN)
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


def test_rows_are_read_alike_from_a_list_and_from_lines(tmp_path: Path):
    rows = [{**ROW, "system": f"number {i}", "id": i} for i in range(5)]
    listed = write_json(tmp_path / "a.json", rows)
    lines = write_lines(tmp_path / "b.jsonl", rows)
    lines.write_text("\ufeff" + lines.read_text().replace("\n", "\n\n"))
    assert count_rows(listed) == count_rows(lines) == 5
    for path in (listed, lines):
        parts = list(read_dialogues(path))
        assert [(part.index, part.system) for part in parts] == [(i, f"number {i}") for i in range(5)]
        assert parts[0].heard == next(read_dialogues(listed)).heard


def test_a_system_message_may_stand_first_in_the_conversation(tmp_path: Path):
    first = {"from": "system", "value": "be kind"}
    row = {"conversations": [first, *ROW["conversations"]], "tools": json.loads(ROW["tools"])}
    (moved,) = read_dialogues(write_json(tmp_path / "a.json", [row]))
    (usual,) = read_dialogues(write_json(tmp_path / "b.json", [ROW]))
    assert (moved.system, moved.tools, moved.heard, moved.said) == (
        usual.system,
        usual.tools,
        usual.heard,
        usual.said,
    )


def test_several_calls_at_once_are_one_turn(tiny: Renderer, tmp_path: Path):
    call = {"name": "look", "arguments": {"at": "sky"}}
    turns = [*ROW["conversations"]]
    turns[3] = {"from": "function_call", "value": "<think>both</think>\n\n" + json.dumps([call, call])}
    path = write_json(tmp_path / "a.json", [{**ROW, "conversations": turns}])
    (dialogue,) = read_dialogues(path)
    written = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    assert dialogue.said[1] == f"<think>both</think>\n\n{written}\n{written}"
    (sample,) = Demonstrations([read(path, renderer=tiny)])
    assert tiny.tokenizer.decode(sample.token_ids[sample.loss_mask]).count(written) == 2


def turns(*pairs: tuple[str, object]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


BAD: dict[str, tuple[object, str]] = {
    "a row that is a list": ([1], "row 2: a row must be an object"),
    "a row that is text": ("hi", r'row 2: a row must be an object: give .*, not "hi"$'),
    "a row that is null": (None, "row 2: a row must be an object: give .*, not null$"),
    "no conversations": ({"id": 3}, "row 2: `conversations` is missing: a row has"),
    "misspelt": ({"conversation": []}, "'conversation' is no field of a row: did you mean 'conversations'"),
    "misspelt too": ({"conversations": [], "tool": "[]"}, "'tool' is no field of a row: did you mean"),
    "conversations is text": ({"conversations": "hi"}, r'conversations="hi": must be a list of turns'),
    "no turns": ({"conversations": []}, "must be a list of turns: give at least two"),
    "a turn that is text": ({"conversations": ["hi"]}, r"conversations\[0\]: a turn must be an object with"),
    "a turn without value": (
        {"conversations": [{"from": "human"}]},
        "must be an object with `from` and `value`",
    ),
    "a field too many": (
        {"conversations": [{"from": "human", "value": "a", "loss": 0}]},
        r"conversations\[0\]: 'loss' is no field of a turn",
    ),
    "an unknown role": (turns(("human", "a"), ("bot", "b")), r'\[1\]: from="bot" is not known: give one of'),
    "value is no text": (turns(("human", "a"), ("gpt", {"b": 1})), r'\[1\]: value=\{"b": 1\}: must be text'),
    "an empty value": (turns(("human", "a"), ("gpt", " ")), r"\[1\]: value is empty: gpt must say something"),
    "it begins with gpt": (
        turns(("gpt", "a"), ("human", "b")),
        r"\[0\]\.from='gpt': a dialogue begins with human",
    ),
    "two in a row": (
        turns(("human", "a"), ("human", "b"), ("gpt", "c")),
        r"\[1\]\.from='human': it follows 'human'",
    ),
    "gpt then a call": (
        turns(("human", "a"), ("gpt", "b"), ("function_call", '{"name": "f", "arguments": {}}')),
        "policy and environment take turns: join the two",
    ),
    "human after a call": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {}}'), ("human", "b")),
        r"\[2\]\.from='human': a function_call is answered by an observation",
    ),
    "system in between": (
        turns(("human", "a"), ("system", "b")),
        r"\[1\]\.from='system': a system message stands",
    ),
    "two systems": (
        {**turns(("system", "a"), ("human", "b")), "system": "c"},
        "the row has a `system` already",
    ),
    "nobody answers": (turns(("human", "a")), "no turn of the policy: give at least one"),
    "system is no text": ({**ROW, "system": 3}, "system=3: must be text"),
    "system is false": ({**ROW, "system": False}, "system=false: must be text"),
    "system is an empty list": ({**ROW, "system": []}, r"system=\[\]: must be text"),
    "tools are nothing": ({**ROW, "tools": 0}, "tools: 0 is no list"),
    "not a number": ({**ROW, "id": float("nan")}, "row 2: the field 'id' holds NaN, .*: give a finite"),
    "an infinity in a list": ({**ROW, "id": [[-float("inf")]]}, "row 2: the field 'id' holds NaN, an inf"),
    "an infinity in a call": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": 1e999}}')),
        r"\[1\]\.value: the field 'x' holds NaN, an infinity",
    ),
    "five thousand digits": (
        turns(("human", "a"), ("function_call", f'{{"name": "f", "arguments": {{"x": {"7" * 5000}}}}}')),
        r"\[1\]\.value: the field 'x' holds .* more than 400 digits: give",
    ),
    "the same argument twice": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": 1, "x": 2}}')),
        r"\[1\]\.value: the field 'x' stands twice in one object: keep one",
    ),
    "the same field twice in the tools": (
        {**ROW, "tools": '[{"name": "look", "name": "see"}]'},
        "tools: the field 'name' stands twice in one object",
    ),
    "a field too many in a call": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {}, "args": {}}')),
        r"\[1\]\.value: 'args' is no field of a call: give",
    ),
    "a call of nothing": (
        turns(("human", "a"), ("function_call", '{"name": " ", "arguments": {}}')),
        r"\[1\]\.value: .* is no call: give",
    ),
    "a tool called nothing": ({**ROW, "tools": [{"name": ""}]}, r"tools\[0\]: .* is no tool schema"),
    "a call that ends within": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": "}</tool_call>"}}')),
        r"\[1\]\.value: the call of 'f' holds </tool_call>, which would end it: write",
    ),
    "a call that ends a thought": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": "</think>"}}')),
        "the call of 'f' holds </think>",
    ),
    "tools are not JSON": ({**ROW, "tools": "look()"}, "tools: not JSON"),
    "tools are no list": ({**ROW, "tools": {"name": "look"}}, "tools: .* is no list"),
    "a tool without name": (
        {**ROW, "tools": [{"description": "x"}]},
        r"tools\[0\]: .* is no tool schema: give",
    ),
    "a call that is not JSON": (
        turns(("human", "a"), ("function_call", "look()")),
        r"\[1\]\.value: not JSON",
    ),
    "a call without name": (turns(("human", "a"), ("function_call", '{"f": 1}')), 'is no call: give {"name"'),
    "arguments are text": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": "{}"}')),
        'arguments="{}": must be an object',
    ),
    "a tool the row has not": (
        {
            **turns(("human", "a"), ("function_call", '{"name": "lok", "arguments": {}}')),
            "tools": ROW["tools"],
        },
        "name='lok' is not among the row's tools: did you mean 'look'",
    ),
    "half a character": (turns(("human", "a\ud800"), ("gpt", "b")), "character 1 is half a surrogate pair"),
    "half in a call": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": "\\ud800"}}')),
        "half a surrogate pair",
    ),
    "images": ({**ROW, "images": ["a.png"]}, "images: policies read text alone"),
}


GOOD = json.dumps([ROW, ROW]).encode()


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_row_is_refused_in_one_line_that_says_where(name: str, tmp_path: Path):
    row, reason = BAD[name]
    path = write_json(tmp_path / "bad.json", [ROW, row])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=reason) as refusal:
        count_rows(path)
    assert str(refusal.value).startswith(f"{path}: row 2") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no row: give"),
        (b"[]", "holds no row: give"),
        (
            b'[{"conversations": ',
            "bad.json: row 1: not JSON .*: a file is one list of rows, or has",
        ),
        (b'{\n "conversations": []\n}', "line 1: not JSON .* one whole row a line"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, r"row 1: not JSON \(nested too deeply\)"),
        (b"\n" * 2**20 + b" [NaN]", "row 1: a row must be an object: give .*, not NaN"),
        (GOOD[:-1], r"row 2: not JSON \(Expecting ',' or '\]'"),
        (GOOD[:-1] + b",]", r"row 3: not JSON \(Expecting value"),
        (GOOD[:-1] + b" {}]", r"row 2: not JSON \('\{' follows the row\)"),
        (GOOD + b"[]", "bad.json: not JSON .something follows the list"),
        (GOOD[:-1] + b', {"system": "a", "system": "b"}]', "row 3: the field 'system' stands twice in one"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, reason: str, tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        count_rows(path)
    with pytest.raises(ValueError, match="cannot be read"):
        count_rows(tmp_path / "none.json")


@pytest.mark.parametrize("size", [1, 7, 64, 2**20])
def test_rows_of_a_list_are_read_over_the_ends_of_pieces(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_rows, "PIECE", size)
    rows = [{"n": i, "text": "ü" * (i % 50) + '\\n"]},{[', "list": [[], {}, -1.5e3]} for i in range(60)]
    for indent in (None, 2):
        path = tmp_path / "a.json"
        path.write_text("\ufeff \n" + json.dumps(rows, indent=indent, ensure_ascii=indent is None) + " \n ")
        expected = [(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]
        assert list(json_rows.read_rows(path)) == expected


def test_a_long_list_is_never_held_whole(tmp_path: Path):
    path = write_json(tmp_path / "a.json", [{**ROW, "id": "x" * 10_000}] * 2000)
    tracemalloc.start()
    try:
        assert count_rows(path) == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 20e6 > 2 * peak


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "the policy": (
        turns(("human", "a"), ("gpt", "b<|im_end|>\n")),
        r": the policy's turn 1: .*'<\|im_end\|>'",
    ),
    "a user": (
        turns(("human", "a"), ("gpt", "b"), ("human", "<|im_start|>c"), ("gpt", "d")),
        r"before the policy's turn 2: its text holds '<\|im_start\|>', a special token of this policy: take",
    ),
    "a system": ({**ROW, "system": "a<|endoftext|>"}, r"system: its text holds '<\|endoftext\|>'"),
    "a tool": ({**ROW, "tools": [{"name": "look", "at": "<|im_end|>"}]}, "tools: its text holds"),
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


def test_thoughts_and_calls_are_the_policys_own_even_where_they_are_special_tokens(
    tiny: Renderer, tmp_path: Path
):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})  # type: ignore[dict-item]
    thought = turns(("human", "a"), ("gpt", "<think>b</think>c"))
    assert read(write_json(tmp_path / "a.json", [thought]), renderer=Renderer(tokenizer)).num_rows == 1
    heard = turns(("human", "<think>a"), ("gpt", "b"))
    with pytest.raises(ValueError, match="before the policy's turn 1: its text holds '<think>'"):
        read(write_json(tmp_path / "b.json", [heard]), renderer=Renderer(tokenizer))


def test_a_row_that_the_chat_template_refuses_is_refused(tmp_path: Path):
    strict = word_renderer(WORDS, template="{{ raise_exception('only\nusers') }}")
    with pytest.raises(ValueError, match=r"row 1: the policy's chat template refuses it \(only users\)"):
        read(write_json(tmp_path / "b.json", [ROW]), renderer=strict)


def test_the_row_in_the_documentation_is_a_row(tiny: Renderer, tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "sft.md").read_text()
    (tmp_path / "a.json").write_text(page.partition("```json\n")[2].partition("```")[0])
    assert read(tmp_path / "a.json", renderer=tiny).num_rows == 2


def test_dialogues_that_are_too_long_are_left_out_whole_and_counted(tmp_path: Path):
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
