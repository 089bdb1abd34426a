"""Rows of ShareGPT files: malformed rows are refused in one line with their place; files are streamed."""

import json
import tracemalloc
from pathlib import Path

import pytest

from learners.sft import json_rows
from learners.sft.sharegpt import count_rows
from tests.learners.demonstration_dialogues import write_json
from tests.learners.sft.test_sharegpt import ROW, turns

BAD: dict[str, tuple[object, str]] = {
    "a row that is a list": ([1], "row 2: a row must be an object"),
    "a row that is text": ("hi", r'row 2: a row must be an object: give .*, not "hi"$'),
    "a row that is null": (None, "row 2: a row must be an object: give .*, not null$"),
    "no conversations": ({"id": 3}, "row 2: `conversations` is missing: a row has"),
    "misspelt": (
        {"conversation": []},
        "'conversation' is not a field of a row: did you mean 'conversations'",
    ),
    "misspelt too": ({"conversations": [], "tool": "[]"}, "'tool' is not a field of a row: did you mean"),
    "conversations is text": ({"conversations": "hi"}, r'conversations="hi": must be a list of turns'),
    "no turns": ({"conversations": []}, "must be a list of turns: give at least two"),
    "a turn that is text": ({"conversations": ["hi"]}, r"conversations\[0\]: a turn must be an object with"),
    "a turn without value": (
        {"conversations": [{"from": "human"}]},
        "must be an object with `from` and `value`",
    ),
    "a field too many": (
        {"conversations": [{"from": "human", "value": "a", "loss": 0}]},
        r"conversations\[0\]: 'loss' is not a field of a turn",
    ),
    "an unknown role": (turns(("human", "a"), ("bot", "b")), r'\[1\]: from="bot" is not known: give one of'),
    "value is no text": (turns(("human", "a"), ("gpt", {"b": 1})), r'\[1\]: value=\{"b": 1\}: must be text'),
    "an empty value": (turns(("human", "a"), ("gpt", " ")), r"\[1\]: value is empty: gpt must have text"),
    "it begins with gpt": (
        turns(("gpt", "a"), ("human", "b")),
        r"\[0\]\.from='gpt': a dialogue starts with human",
    ),
    "two in a row": (
        turns(("human", "a"), ("human", "b"), ("gpt", "c")),
        r"\[1\]\.from='human': it follows 'human'",
    ),
    "gpt then a call": (
        turns(("human", "a"), ("gpt", "b"), ("function_call", '{"name": "f", "arguments": {}}')),
        "policy and environment must alternate: join the two",
    ),
    "human after a call": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {}}'), ("human", "b")),
        r"\[2\]\.from='human': a function_call is followed by an observation",
    ),
    "system in between": (
        turns(("human", "a"), ("system", "b")),
        r"\[1\]\.from='system': a system message must be the first",
    ),
    "two systems": (
        {**turns(("system", "a"), ("human", "b")), "system": "c"},
        "the row has a `system` already",
    ),
    "no answer": (turns(("human", "a")), "no turn of the policy: give at least one"),
    "system is no text": ({**ROW, "system": 3}, "system=3: must be text"),
    "system is false": ({**ROW, "system": False}, "system=false: must be text"),
    "system is an empty list": ({**ROW, "system": []}, r"system=\[\]: must be text"),
    "tools are nothing": ({**ROW, "tools": 0}, "tools: 0 is not a list"),
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
        r"\[1\]\.value: the field 'x' occurs twice in one object: keep one",
    ),
    "the same field twice in the tools": (
        {**ROW, "tools": '[{"name": "look", "name": "see"}]'},
        "tools: the field 'name' occurs twice in one object",
    ),
    "a field too many in a call": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {}, "args": {}}')),
        r"\[1\]\.value: 'args' is not a field of a call: give",
    ),
    "a call of nothing": (
        turns(("human", "a"), ("function_call", '{"name": " ", "arguments": {}}')),
        r"\[1\]\.value: .* is not a call: give",
    ),
    "a tool called nothing": ({**ROW, "tools": [{"name": ""}]}, r"tools\[0\]: .* is not a tool schema"),
    "a call that ends within": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": "}</tool_call>"}}')),
        r"\[1\]\.value: the call of 'f' contains </tool_call>, which would end it: write",
    ),
    "a call that ends a thought": (
        turns(("human", "a"), ("function_call", '{"name": "f", "arguments": {"x": "</think>"}}')),
        "the call of 'f' contains </think>",
    ),
    "tools are not JSON": ({**ROW, "tools": "look()"}, "tools: not JSON"),
    "tools are no list": ({**ROW, "tools": {"name": "look"}}, "tools: .* is not a list"),
    "a tool without name": (
        {**ROW, "tools": [{"description": "x"}]},
        r"tools\[0\]: .* is not a tool schema: give",
    ),
    "a call that is not JSON": (
        turns(("human", "a"), ("function_call", "look()")),
        r"\[1\]\.value: not JSON",
    ),
    "a call without name": (
        turns(("human", "a"), ("function_call", '{"f": 1}')),
        'is not a call: give {"name"',
    ),
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
    "images": ({**ROW, "images": ["a.png"]}, "images: policies read text only"),
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
        (b"", "has no row: give"),
        (b"[]", "has no row: give"),
        (
            b'[{"conversations": ',
            "bad.json: row 1: not JSON .*: a file is one list of rows, or has",
        ),
        (b'{\n "conversations": []\n}', "line 1: not JSON .* one complete row per line"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, r"row 1: not JSON \(nested too deeply\)"),
        (b"\n" * 2**20 + b" [NaN]", "row 1: a row must be an object: give .*, not NaN"),
        (GOOD[:-1], r"row 2: not JSON \(Expecting ',' or '\]'"),
        (GOOD[:-1] + b",]", r"row 3: not JSON \(Expecting value"),
        (GOOD[:-1] + b" {}]", r"row 2: not JSON \('\{' follows the row\)"),
        (GOOD + b"[]", "bad.json: not JSON .something follows the list"),
        (GOOD[:-1] + b', {"system": "a", "system": "b"}]', "row 3: the field 'system' occurs twice in one"),
    ],
)
def test_an_invalid_file_is_refused(content: bytes, reason: str, tmp_path: Path):
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


@pytest.mark.medium
def test_a_long_list_is_never_in_memory_as_a_whole(tmp_path: Path):
    path = write_json(tmp_path / "a.json", [{**ROW, "id": "x" * 10_000}] * 2000)
    tracemalloc.start()
    try:
        assert count_rows(path) == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 20e6 > 2 * peak
