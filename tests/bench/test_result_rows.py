import json
from pathlib import Path

import pytest

from bench import result_rows as of_bench
from bench.__main__ import PARTS
from bench.harness import compare, interleaved
from bench.result_rows import Row, keep, markdown


def row(bench: str, case: str, value: float = 1.0) -> Row:
    return Row(bench=bench, case=case, metric="speed", value=value, unit="tokens/s", runs=5)


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real results stay as they are."""
    monkeypatch.setattr(of_bench, "LATEST", tmp_path / "results" / "latest.json")
    monkeypatch.setattr(of_bench, "MARKDOWN", tmp_path / "RESULTS.md")
    return tmp_path


def test_the_file_has_the_fixed_names(own_files: Path):
    keep([row("limit", "ours")], benches=["limit"])
    found = json.loads((own_files / "results" / "latest.json").read_text())
    assert set(found) == {"machine", "rows"}
    names = {"bench", "case", "metric", "value", "unit", "runs", "ratio_to", "ratio"}
    assert [set(one) for one in found["rows"]] == [names]


def test_kept_rows_replace_only_those_of_their_own_benches():
    keep([row("limit", "old"), row("sync", "stays")], benches=["limit", "sync"])
    kept = keep([row("limit", "new", 2.0)], benches=["limit"])
    assert [(one.bench, one.case) for one in kept] == [("sync", "stays"), ("limit", "new")]
    assert json.loads(of_bench.LATEST.read_text())["rows"][1]["value"] == 2.0


def test_a_bench_that_gave_no_rows_keeps_none_of_its_old_ones():
    keep([row("limit", "old")], benches=["limit"])
    assert keep([], benches=["limit"]) == []


def test_markdown_has_a_table_for_each_bench_and_the_machine_beside_it():
    ours = Row(
        bench="limit", case="ours", metric="speed", value=1234.5, unit="tokens/s", runs=5, ratio_to="TRL",
        ratio=12.34,
    )  # fmt: skip
    text = markdown([ours, row("sync", "file", 0.0123)])
    assert "Python" in text and text.index("## limit") < text.index("## sync")
    assert "| ours | speed | 1,234 tokens/s | 5 | 12.34 × TRL |" in text
    assert "| file | speed | 0.0123 tokens/s | 5 |  |" in text


def test_a_ratio_is_the_median_of_the_ratios_run_by_run():
    values = {"ours": [10.0, 40.0, 30.0], "peer": [1.0, 2.0, 10.0]}
    rows = compare(values, bench="b", metric="m", unit="u", ratio_to="peer", ours="ours")
    assert [(one.case, one.value, one.ratio_to, one.ratio) for one in rows] == [
        ("ours", 30.0, "peer", 10.0),
        ("peer", 2.0, "", None),
    ]


@pytest.mark.medium
def test_runs_take_turns_and_the_first_of_each_does_not_count():
    told: list[str] = []

    def tell(name: str) -> float:
        told.append(name)
        return float(len(told))

    values = interleaved({"a": lambda: tell("a"), "b": lambda: tell("b")}, runs=2)
    assert told == ["a", "b"] * 3
    assert values == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_every_part_that_the_command_knows_is_a_module_that_measures():
    folder = Path(of_bench.__file__).parent
    assert [
        name for name in PARTS if "def measure(quick: bool)" not in (folder / f"{name}.py").read_text()
    ] == []
