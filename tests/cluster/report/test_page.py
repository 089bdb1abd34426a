"""The page of a run: its numbers are those of the run folder, it needs nothing else, and it stays small."""

import base64
import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.evaluation.results import read_rows
from cluster.report import page as pages
from cluster.report.blocks import dialogue_blocks
from cluster.report.charts import Chart, Series, draw, short
from cluster.report.curves import Dialogues, moving_curve, thinned
from cluster.report.dialogue_texts import choose
from cluster.report.json_blocks import pack, unpack
from cluster.report.live_server import make_server
from cluster.report.page import render
from cluster.report.run_rows import RunRows, read_runs
from cluster.run_folder.paths import RunFolder
from learners.buffer.archive import part_file, rest_file
from tests.cluster.sample_run_folders import GROUP_SIZE, add_steps, make_group, make_run, write_step

pytestmark = pytest.mark.medium

BLOCK = re.compile(r'id="block-([\w-]+)">([^<]*)<')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", num_steps=12)


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return html_of(run)


@pytest.fixture(scope="module")
def data(html: str) -> dict[str, Any]:
    return data_of(html)


def html_of(*folders: RunFolder) -> str:
    return render(read_runs([folder.path for folder in folders])).html


def data_of(html: str) -> dict[str, Any]:
    """All blocks of a page, unpacked."""
    return {name: unpack(block) for name, block in BLOCK.findall(html)}


def series_of(charts: dict[str, Any], key: str) -> dict[str, Any]:
    return {series["name"]: series for series in charts[key]["series"]}


def frame_of(folder: RunFolder) -> Any:
    """One row a dialogue, by pandas alone."""
    rows: Any = pd.concat(
        [pd.read_parquet(file) for file in sorted(folder.trajectories.glob("step-?????.parquet"))]
    )
    keys = ["step", "gym", "group_id", "trajectory"]
    frame = rows.groupby(keys).agg(score=("env_reward", "sum"), failed=("failed", "first")).reset_index()
    return frame[~frame["failed"]]


def test_each_step_of_a_reward_chart_is_what_pandas_and_metrics_say(run: RunFolder, data: dict[str, Any]):
    charts, frame = data["charts"], frame_of(run)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for key, gym in (("reward", None), ("reward-gym-function", "function"), ("reward-gym-travel", "travel")):
        steps = series_of(charts, key)["each step"]
        by_step = (frame if gym is None else frame[frame["gym"] == gym]).groupby("step")["score"].mean()
        assert steps["x"] == by_step.index.tolist()
        assert steps["y"] == pytest.approx(by_step.tolist(), abs=1e-12)
        assert steps["y"] == pytest.approx(
            [line[f"rollout/reward/{gym or 'mean'}"] for line in lines], abs=1e-12
        )


def test_every_other_number_of_a_chart_is_that_of_metrics_to_the_last_digit(
    run: RunFolder, data: dict[str, Any]
):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for key, name, metric in (
        ("entropy", "entropy", "learner/entropy"),
        ("seconds-of-a-step", "update", "time/update_s"),
        ("time-of-a-turn", "user", "rollout/time/user/share"),
        ("issued-trajectories", "trained", "ledger/trained"),
        ("issued-trajectories", "dropped: failed", "ledger/dropped/failed"),
        ("age-of-a-group", "mean", "buffer/age/mean"),
        ("trajectories-that-a-user-failed", "qwen: simulator_error", "users/qwen/failed/simulator_error"),
    ):
        assert series_of(data["charts"], key)[name]["y"] == [line[metric] for line in lines]


def test_scores_stand_with_their_intervals_as_in_evaluation_and_validation(
    run: RunFolder, data: dict[str, Any]
):
    series = series_of(data["charts"], "reward-gym-travel")
    for name, path in (("test tasks", run.evaluation), ("validation", run.validation)):
        rows = [row for row in read_rows(path) if row.gym == "travel"]
        assert series[name]["labels"] == [row.stage for row in rows]
        assert series[name]["y"] == [row.score for row in rows]
        assert series[name]["low"] == [row.low for row in rows]
        assert series[name]["high"] == [row.high for row in rows]
    assert series["validation"]["x"] == [2.0]


def test_a_curve_is_the_mean_of_groups_with_students_interval():
    curve = moving_curve(np.array([1, 1, 2, 2]), np.array([0.0, 1.0, 1.0, 1.0]))
    half = 3.182446 * 0.5 / 2  # t(3 degrees, 97.5 %), deviation 0.5, four groups
    assert curve.steps.tolist() == [1, 2]
    assert curve.means.tolist() == [0.75, 0.75]
    assert curve.lows == pytest.approx([0.75 - half] * 2, abs=1e-6)
    assert curve.highs == pytest.approx([0.75 + half] * 2, abs=1e-6)


def test_one_group_alone_has_no_interval():
    curve = moving_curve(np.array([4]), np.array([0.5]))
    assert curve.means.tolist() == [0.5]
    assert np.isnan([curve.lows[0], curve.highs[0]]).all()


def test_a_long_run_keeps_its_last_step_and_an_even_part_of_the_others():
    points = thinned(np.arange(1, 1203))
    assert len(points) <= 501
    assert points[-1] == 1202
    assert set(np.diff(points[:-1]).tolist()) == {3}


@pytest.mark.parametrize(
    ("name", "step"),
    [(rest_file(2), 2), (part_file(3, part=0), 3)],
    ids=["before a stop", "of a step at work"],
)
def test_what_was_dropped_after_the_last_step_is_shown_and_not_counted(tmp_path: Path, name: str, step: int):
    folder = make_run(tmp_path / "run", num_steps=2)
    before = series_of(data_of(html_of(folder))["charts"], "reward")["each step"]
    table, _ = make_group(9, 0, text="later")
    write_step(folder.trajectories / f"{name}.parquet", [table], step=step)
    data = data_of(html_of(folder))
    assert series_of(data["charts"], "reward")["each step"] == before
    assert len(data["index"]["score"]) == 2 * 16 + GROUP_SIZE


def test_a_dialogue_in_the_page_is_its_rows_on_disk(run: RunFolder, data: dict[str, Any]):
    index, shown = data["index"], data["texts-0"]["dialogues"]
    assert len(shown) == 100
    for place, dialogue in enumerate(shown[:32]):
        name, first, last = re.fullmatch(r"(\S+) rows (\d+)–(\d+)", dialogue["source"]).groups()  # type: ignore[union-attr]
        rows: Any = pd.read_parquet(run.trajectories / name).iloc[int(first) : int(last) + 1]
        assert index["task"][place] == rows["task_id"].iloc[0]
        assert index["turns"][place] == len(rows) == len(dialogue["turns"])
        assert [turn["text"] for turn in dialogue["turns"]] == rows["text"].tolist()
        assert [turn["feedback"] for turn in dialogue["turns"]] == rows["feedback"].tolist()
        assert [turn["env"] for turn in dialogue["turns"]] == rows["env_reward"].tolist()
        assert data["texts-0"]["systems"][dialogue["system"]] == "Be kind."
        failed = bool(rows["failed"].iloc[0])
        assert index["score"][place] == (None if failed else rows["env_reward"].sum())
        tokens = data["tokens-0"][place]
        assert [turn["ids"] for turn in tokens] == [ids.tolist() for ids in rows["completion_ids"]]
        assert [turn["versions"] for turn in tokens] == [versions[0] for versions in rows["policy_versions"]]
        for turn, logprobs in zip(tokens, rows["behavior_logprobs"], strict=True):
            assert np.array(turn["logprobs"]) / 1000 == pytest.approx(logprobs, abs=5e-4)


def test_simulators_and_stop_reasons_are_told_apart(data: dict[str, Any]):
    index = data["index"]
    counts = {
        name: dict(zip(index[name]["values"], np.bincount(index[name]["codes"]).tolist(), strict=True))
        for name in ("gym", "simulator", "persona", "stop")
    }
    assert counts["simulator"] == {"rules": 96, "qwen": 96}
    assert counts["stop"] == {"terminated": 180, "simulator_error": 12}
    assert counts["gym"] == {"function": 96, "travel": 96}
    assert counts["persona"] == {"plain": 96, "hurried": 96}


def test_what_the_learner_made_of_each_turn_is_shown_as_archived(run: RunFolder, data: dict[str, Any]):
    """Twelve steps give 192 dialogues; the last of each step failed, and was learned from by nobody."""
    names = ("advantage", "value", "credit", "gain")
    shown = [
        turn for block in ("texts-0", "texts-1") for one in data[block]["dialogues"] for turn in one["turns"]
    ]
    rows: Any = pd.concat([pd.read_parquet(file) for file in sorted(run.trajectories.glob("step-*.parquet"))])
    for name in names:
        expected = [None if pd.isna(value) else pytest.approx(value, abs=5e-5) for value in rows[name]]
        assert [turn.get(name) for turn in shown] == expected
    assert [turn["advantage"] for turn in shown].count(None) == 12 * 2
    assert not any("gain" in turn for turn in shown)


def test_an_archive_of_before_has_no_advantages_and_none_are_made_up(tmp_path: Path):
    folder = make_run(tmp_path / "run", num_steps=1)
    (path,) = folder.trajectories.glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["advantage", "value", "credit", "gain"]), path)
    turns = [turn for one in data_of(html_of(folder))["texts-0"]["dialogues"] for turn in one["turns"]]
    assert {turn["advantage"] for turn in turns} == {None}
    assert not any({"value", "credit", "gain"} & turn.keys() for turn in turns)


def test_a_page_asks_nobody_for_anything(html: str):
    shown = BLOCK.sub("", html)
    assert "http" not in re.sub(r"http-equiv", "", shown)
    assert not re.search(r"(src|href)=\"(?!#|data:,)", shown)
    assert not re.search(r"@import|url\((?!#)", shown)
    assert "default-src 'none'" in shown
    assert "connect-src" not in shown


def test_only_the_pages_own_script_may_run(tmp_path: Path):
    folder = make_run(tmp_path / "run", num_steps=1, text="</script><script>alert(1)</script>")
    html = html_of(folder)
    assert "alert(1)" not in html
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


class Names(HTMLParser):
    """The ids of a page, and those that it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.wanted: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            elif key == "aria-labelledby" or (key == "href" and (value or "").startswith("#")):
                self.wanted.append((value or "").removeprefix("#"))
            self.wanted += re.findall(r"url\(#([^)]+)\)", value or "")


def test_every_name_in_a_page_is_there_once(html: str):
    names = Names()
    names.feed(html)
    assert len(set(names.ids)) == len(names.ids)
    assert set(names.wanted) <= set(names.ids)


def test_a_page_stays_within_its_bytes_with_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_run(tmp_path / "run", num_steps=6, noise=3000)
    whole = render(read_runs([folder.path]))
    most = len(whole.html.encode()) - 60_000
    monkeypatch.setattr(pages, "MOST_BYTES", most)
    page = render(read_runs([folder.path]))
    assert len(page.html.encode()) <= most
    assert 0 < page.num_dialogues < page.num_on_disk == whole.num_dialogues
    groups = np.bincount(data_of(page.html)["index"]["group"])
    assert set(groups.tolist()) == {GROUP_SIZE}


def test_tokens_give_way_before_texts(run: RunFolder):
    runs = read_runs([run.path])
    everything = dialogue_blocks(runs, room=10**7)
    assert everything.num_with_tokens == everything.num_dialogues == 192
    tokens = sum(len(block) for name, block in everything.packed.items() if name.startswith("tokens"))
    texts = sum(map(len, everything.packed.values())) - tokens
    part = dialogue_blocks(runs, room=texts + tokens // 2 if tokens < texts // 3 else int(texts / 0.75))
    assert part.num_dialogues == 192
    assert 0 < part.num_with_tokens < 192


def test_a_sample_is_even_and_always_the_same(run: RunFolder):
    runs = read_runs([run.path])
    first, again = choose(runs, most=80), choose(runs, most=80)
    assert sum(one.size for one in first) == 80
    assert [one.rank for one in first] == [one.rank for one in again]
    assert len({one.file.path.name for one in first}) >= 8  # of twelve files


def test_several_runs_stand_beside_each_other(tmp_path: Path):
    one = make_run(tmp_path / "one", num_steps=3)
    two = make_run(tmp_path / "two", num_steps=5, overrides={"learner.lr": "0.5"})
    html = html_of(one, two)
    data = data_of(html)
    rewards = series_of(data["charts"], "reward")
    assert (max(rewards["one"]["x"]), max(rewards["two"]["x"])) == (3, 5)
    assert series_of(data["charts"], "entropy").keys() == {"one", "two"}
    assert data["index"]["run"]["values"] == ["one", "two"]
    assert data["index"]["run"]["codes"].count(1) == 5 * 16
    row = re.search(r"<th scope=\"row\">learner.lr</th>(.*?)</tr>", html)
    assert row is not None
    assert "0.5" in row[1]
    assert "learner.advantage.gamma" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL)


def test_runs_of_one_name_are_told_apart_and_one_run_is_not_two(tmp_path: Path):
    paths = [make_run(tmp_path / place / "run", num_steps=1).path for place in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    with pytest.raises(BadInput, match="given twice"):
        read_runs([paths[0], paths[0]])


def test_a_run_without_a_step_and_a_line_half_written_make_a_page(tmp_path: Path):
    empty = make_run(tmp_path / "empty", num_steps=0)
    assert "No dialogue is on disk yet" in html_of(empty)
    folder = make_run(tmp_path / "run", num_steps=2)
    with folder.metrics.open("a") as metrics:
        metrics.write('{"step": 3, "learner/entr')
    assert series_of(data_of(html_of(folder))["charts"], "entropy")["entropy"]["x"] == [1, 2]


def test_a_chart_takes_its_colours_from_the_page():
    series = Series(name="a", x=[1, 2], y=[0.0, 1.0], low=[0.0, 0.5], high=[0.5, 1.5])
    svg = draw(Chart(key="a", title="A", series=[series]))
    assert "var(--s0)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert [short(value) for value in (0.25, 12500.0, -3.0e6)] == ["0.25", "12.5k", "-3M"]


def test_all_dialogues_of_a_run_are_counted_once(run: RunFolder):
    (rows,) = read_runs([run.path])
    dialogues = Dialogues.of(rows)
    assert len(dialogues.scores) == rows.num_dialogues == 192
    assert len(set(dialogues.groups.tolist())) == 48


def test_the_same_document_is_the_same_block():
    document = {"a": [1, None, "é"]}
    assert pack(document) == pack(document)
    assert unpack(pack(document)) == document
    with pytest.raises(ValueError, match="JSON"):
        pack([float("nan")])


def test_the_command_writes_into_the_run_folder_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = make_run(tmp_path / "run", num_steps=1)
    assert main(["report", str(folder.path)]) == 0
    file = folder.path / "report.html"
    assert capsys.readouterr().out.strip() == str(file)
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "nowhere"], "nowhere: no run there: give a run folder such as runs/NAME"),
        (["report", "RUN", "--serve", "--output", "x.html"], "--output: --serve writes no file"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
):
    run = make_run(tmp_path / "run", num_steps=0).path
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_served_page_follows_its_run_and_answers_this_machine_alone(tmp_path: Path):
    folder = make_run(tmp_path / "run", num_steps=1)
    server = make_server([folder.path], port=0)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def get(path: str, host: str = "127.0.0.1") -> str:
        request = urllib.request.Request(address + path, headers={"Host": host})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    try:
        before = get("/version")
        page = get("/")
        assert f'data-version="{before}"' in page
        assert "connect-src 'self'" in page
        assert "step 1 of" in page
        add_steps(folder, [2])
        assert get("/version") != before
        assert "step 2 of" in get("/")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get("/", host="example.org")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("/config.toml")
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_that_goes_away_while_it_is_read_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make_run(tmp_path / "run", num_steps=2)
    gone = folder.trajectories / "step-00002.parquet"
    read, tries = pages.read_runs, []

    def read_and_lose(paths: Sequence[Path]) -> list[RunRows]:
        runs = read(paths)  # it lists the file, whose dialogues are read later
        gone.unlink(missing_ok=True)
        tries.append(len(runs[0].files))
        return runs

    monkeypatch.setattr(pages, "read_runs", read_and_lose)
    assert "All 16 dialogues on disk" in pages.page_of([folder.path]).html
    assert tries == [2, 1]


def test_a_browser_that_goes_leaves_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with make_server([make_run(tmp_path / "run", num_steps=1).path], port=0) as server:
        for error in (BrokenPipeError("gone"), ConnectionResetError("gone"), ValueError("a fault")):
            try:
                raise error
            except (OSError, ValueError):
                server.handle_error(None, ("127.0.0.1", 1))  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert told.count("Traceback") == 1
    assert "ValueError: a fault" in told
