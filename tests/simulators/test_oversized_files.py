"""Outside files that are too large, too deep or highly compressed: refused in one line, without using
memory."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import recipe
from cluster.config.recipe import BadInput, apply_overrides, read_toml
from cluster.config.run_config import RunConfig
from learners.sft import json_rows
from learners.sft.json_rows import read_rows
from simulators import dataset_files, input_limits
from simulators.dataset_files import read_records
from simulators.tau.shop_registry import read_tables
from simulators.users.record_replay import ReplayUser


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can go beyond."""

    def check(size: int, *, place: str, most: int = 1_000) -> None:
        input_limits.check_file_size(size, place=place, most=most)

    for module in (
        "simulators.dataset_files",
        "simulators.users.record_replay",
        "simulators.tau.shop_registry",
    ):
        monkeypatch.setattr(f"{module}.check_file_size", check)


def one_line(error: pytest.ExceptionInfo[Exception]) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.usefixtures("small")
def test_a_task_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"id": "x" * 2_000}]))
    with pytest.raises(
        ValueError, match=r"tasks\.json: 20\d\d bytes: at most 1000 are read: give a"
    ) as error:
        read_records(path, fields={"id": str})
    one_line(error)


@pytest.mark.usefixtures("small")
def test_a_parquet_file_counts_as_what_it_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "tasks.parquet"
    pq.write_table(pa.table({"id": ["x" * 100_000] * 3}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1_000
    with pytest.raises(ValueError, match=r"tasks\.parquet, unpacked: \d+ bytes: at most 1000") as error:
        read_records(path, fields={"id": str})
    one_line(error)


@pytest.mark.usefixtures("small")
def test_a_recording_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("x" * 2_000 + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: 2001 bytes: at most 1000"):
        ReplayUser(tmp_path, gyms={})


@pytest.mark.usefixtures("small")
def test_a_shops_database_is_read_up_to_a_size(tmp_path: Path) -> None:
    for name in ("users", "orders", "products"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a": "x" * 2_000}))
    with pytest.raises(ValueError, match=r"\.json: 20\d\d bytes: at most 1000"):
        read_tables(str(tmp_path), "retail")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_a_deep_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="not readable as JSON") as error:
        read_records(path, fields={"id": str})
    one_line(error)
    recording = tmp_path / "record.jsonl"
    recording.write_text(text + "\n")
    with pytest.raises(ValueError, match="not a recorded reply") as error:
        ReplayUser(recording, gyms={})


@pytest.mark.parametrize("text", ['{"a": "%s"}\n', '[{"a": 1}, {"a": "%s"}]'])
def test_a_row_of_demonstrations_is_held_up_to_a_size(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_CHARS", 2**19)
    path = tmp_path / "rows.json"
    path.write_text(text % ("x" * 2**18))
    assert len(list(read_rows(path))) == 1 + text.startswith("[")
    path.write_text(text % ("x" * 2**22))
    with pytest.raises(
        ValueError, match=r"(line|row) \d: more than 524288 characters: give shorter"
    ) as error:
        list(read_rows(path))
    one_line(error)


def test_a_recipe_is_short_and_shallow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("a = " + "[" * 5_000 + "]" * 5_000)
    with pytest.raises(BadInput, match=r"recipe\.toml: (nested too deeply|not TOML)") as error:
        read_toml(path)
    one_line(error)
    monkeypatch.setattr(recipe, "MAX_RECIPE_BYTES", 100)
    path.write_text("# " + "x" * 200)
    with pytest.raises(BadInput, match=r"recipe\.toml: more than 100 bytes") as error:
        read_toml(path)
    one_line(error)
    data: dict[str, object] = {}
    apply_overrides(data, {"gyms.weights": "[" * 5_000 + "]" * 5_000}, model=RunConfig)
    assert isinstance(data["gyms"], dict) and isinstance(data["gyms"]["weights"], str), (
        "refused as plain text"
    )


def test_the_limits_are_those_that_the_documentation_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "safety.md").read_text(encoding="utf-8")
    assert (input_limits.MAX_ACTION_CHARS, input_limits.MAX_REPLY_CHARS, input_limits.MAX_DEPTH) == (
        16_000,
        16_000,
        64,
    )
    assert (input_limits.MAX_BODY_BYTES, input_limits.MAX_FILE_BYTES) == (4 * 2**20, 2**30)
    assert dataset_files.check_file_size is input_limits.check_file_size
    for said in ("16,000 characters", "64 levels", "4 MiB", "1 GiB"):
        assert said in page
