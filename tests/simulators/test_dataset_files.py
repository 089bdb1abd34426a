"""The reader of published data files: all forms are read; every fault is reported with file, row, field and
cure."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from simulators.dataset_files import ENV_NAME, read_records


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def released_row(env_name: str, task_id: str) -> dict[str, object]:
    """One row as the released Parquet files lay it out."""
    kwargs = {"env_name": env_name, "id": task_id}
    return {
        "prompt": [{"content": "rules", "role": "system"}, {"content": "hello", "role": "user"}],
        "reward_model": {"ground_truth": "-16.0", **kwargs},
        "extra_info": {"index": 3, "tools_kwargs": {"interact_with_env": {"create_kwargs": kwargs}}},
    }


def test_a_list_gives_its_records_in_order(tmp_path: Path):
    path = write(tmp_path / "x.json", [{"id": "b", "n": [1]}, {"id": "a", "n": []}])
    assert [row["id"] for row in read_records(path, fields={"id": str, "n": list})] == ["b", "a"]


def test_json_lines_and_a_byte_order_mark_are_read(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text('\ufeff{"id": "b"}\n\n{"id": "a"}\n', encoding="utf-8")
    assert [row["id"] for row in read_records(path, fields={"id": str})] == ["b", "a"]
    path.write_text('\ufeff[{"id": "c"}]', encoding="utf-8")
    assert [row["id"] for row in read_records(path, fields={"id": str})] == ["c"]


def test_an_objects_keys_become_the_field_key(tmp_path: Path):
    path = write(tmp_path / "x.json", {"5": {"title": "t"}, "7": {"title": "u"}})
    rows = read_records(path, fields={"key": str, "title": str})
    assert [(row["key"], row["title"]) for row in rows] == [("5", "t"), ("7", "u")]


def test_parquet_rows_are_read_inside_their_structs(tmp_path: Path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([released_row("FunctionGym", "func-1"), released_row("TauGym", "t-1")]),
        path,
    )
    deep = "extra_info.tools_kwargs.interact_with_env.create_kwargs.id"
    fields = {"reward_model.ground_truth": str, deep: str, "prompt.1.content": str, "extra_info.index": int}
    rows = read_records(path, fields=fields, where={ENV_NAME: "FunctionGym"})
    assert len(rows) == 1
    assert rows[0][deep] == "func-1" and rows[0]["prompt.1.content"] == "hello"
    assert rows[0]["reward_model.ground_truth"] == "-16.0" and rows[0]["extra_info.index"] == 3


def test_an_optional_field_may_be_missing_and_a_float_may_be_whole(tmp_path: Path):
    path = write(tmp_path / "x.json", [{"x": 2}])
    assert read_records(path, fields={"x": float, "y": (str, type(None))}) == [{"x": 2, "y": None}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"id": "a"}, {}]', ["row 1", "'id'", "missing", "generate tasks"]),
        ('[{"id": 3}]', ["row 0", "'id'", "int, not str"]),
        ('[{"id": null}]', ["row 0", "'id'", "NoneType"]),
        ('[{"id": "a"}, 3]', ["row 1", "int, not an object"]),
        ('{"k": 3}', ["row 0", "not an object"]),
        ("3", ["one int"]),
        ("[]", ["no record"]),
        ("", ["JSON"]),
        ('[{"id": "a"', ["JSON"]),
        ("[" * 100_000, ["JSON"]),
    ],
)
def test_a_flaw_is_named_in_one_line_with_its_file(tmp_path: Path, content: str, words: list[str]):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_records(path, fields={"id": str})
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    assert all(word in line for word in words), line


def test_a_boolean_is_no_integer(tmp_path: Path):
    path = write(tmp_path / "x.json", [{"x": True}])
    with pytest.raises(ValueError, match="bool, not int"):
        read_records(path, fields={"x": int})


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["x.parquet", "x.json"])
def test_bytes_of_no_known_form_are_refused(tmp_path: Path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not readable"):
        read_records(path, fields={})


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            read_records(path, fields={})


def test_a_file_without_rows_of_the_gym_is_refused(tmp_path: Path):
    path = write(tmp_path / "x.json", [released_row("TauGym", "t-1")])
    with pytest.raises(ValueError, match=r"no record with reward_model\.env_name='TurtleGym'"):
        read_records(path, fields={}, where={ENV_NAME: "TurtleGym"})
