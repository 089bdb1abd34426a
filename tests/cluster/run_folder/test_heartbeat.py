"""Heartbeat of a driver in the run folder: its status and its log."""

import json
import time
from pathlib import Path

import pytest

from cluster.config.run_config import load
from cluster.console.events import StageProgress, StepFinished, WaitReason
from cluster.console.log import info, logged_to, warn
from cluster.console.progress import (
    SETUP,
    begin_setup_part,
    report_step,
    report_wait,
    setup_progress,
    stage_progress,
)
from cluster.run_folder.heartbeat import DriverStatus, Heartbeat, read_driver_status, recorded
from cluster.run_folder.paths import RunFolder
from tests.cluster.console.records import record_of
from tests.cluster.console.test_screens import METRICS


def a_folder(path: Path) -> RunFolder:
    config = load(None, {"run.name": path.name, "run.folder": str(path.parent)})
    folder = RunFolder.of(config)
    folder.create(config)
    return folder


def status_of(folder: RunFolder) -> DriverStatus:
    status = read_driver_status(folder.status)
    assert status is not None
    return status


def log_of(folder: RunFolder) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    return [(line["event"], line.get("text", line.get("stage", ""))) for line in lines]


def test_the_status_follows_the_run_and_the_log_has_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_folder(tmp_path / "mine")
    with recorded(folder, num_steps=60):
        begun = status_of(folder)
        assert (begun.state, begun.step, begun.num_steps, begun.stage) == ("running", 0, 60, "")
        with stage_progress("SFT", total=10) as advance:
            assert (status_of(folder).stage, status_of(folder).stage_total) == ("SFT", 10)
            for _ in range(10):
                advance(1, "loss 1.0")
        assert status_of(folder).stage == ""
        report_wait("step 1 waits for groups: 1 of 2")
        assert status_of(folder).waits == "step 1 waits for groups: 1 of 2"
        warn("engine 1 is lost")
        report_step(1, num_steps=60, metrics=METRICS)
        assert (status_of(folder).step, status_of(folder).waits) == (1, "")
        info("a line")
    assert status_of(folder).state == "finished"
    kinds = [kind for kind, _ in log_of(folder)]
    assert kinds == ["run", "stage", "trouble", "step", "line"], "a stage is logged when it has ended"
    assert "metrics" in json.loads(folder.log.read_text().splitlines()[3]), "the key stays"
    assert json.loads(folder.log.read_text().splitlines()[3])["metrics"] == {}, "metrics.jsonl has them"
    assert "a line" in capsys.readouterr().err


def test_a_wait_begins_with_its_first_message(tmp_path: Path) -> None:
    heartbeat = Heartbeat(a_folder(tmp_path / "mine"), num_steps=9)
    folder = RunFolder(tmp_path / "mine")
    for at, text in ((10.0, "1 of 2 ready"), (13.0, "1 of 2 ready, still")):
        heartbeat.emit(record_of(WaitReason(text=text), at=at))
    assert (status_of(folder).waits_since, status_of(folder).waits) == (10.0, "1 of 2 ready, still")
    heartbeat.emit(record_of(WaitReason(text=""), at=14.0))
    heartbeat.emit(record_of(WaitReason(text="1 of 2 ready"), at=20.0))
    assert status_of(folder).waits_since == 20.0


def test_a_stage_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = a_folder(tmp_path / "mine")
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    with logged_to(Heartbeat(folder, num_steps=9)), stage_progress("SFT", total=90) as advance:
        done = [status_of(folder).stage_done]
        for seconds in (0.4, 1.0, 1.9):
            now = 1e9 + seconds
            advance(1, "")
            done.append(status_of(folder).stage_done)
        assert not folder.log.exists()
    assert done == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "stopped", ""),
        (RuntimeError("engine died\nmore"), "failed", "RuntimeError: engine died"),
    ],
)
def test_the_status_says_how_the_run_ended(
    tmp_path: Path, error: BaseException, state: str, reason: str
) -> None:
    folder = a_folder(tmp_path / "mine")
    with pytest.raises(type(error)), recorded(folder, num_steps=9):
        report_step(3, num_steps=9, metrics=METRICS)
        raise error
    assert (status_of(folder).state, status_of(folder).reason, status_of(folder).step) == (state, reason, 3)
    assert (("failed", reason) in log_of(folder)) == bool(reason)


def test_a_set_up_is_expected_to_take_as_long_as_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Heartbeat(a_folder(tmp_path / "first"), num_steps=9)
    parts = ((0, "Ray", 100.0), (1, "weights", 104.0), (2, "", 110.0))
    for done, note, at in parts:
        stage = StageProgress(
            stage=SETUP,
            done=done,
            total=2,
            note=note,
            elapsed_s=at - 100,
            left_s=None,
            is_over=done == 2,
        )
        first.emit(record_of(stage, at=at))
    assert status_of(RunFolder(tmp_path / "first")).setup_s == {"Ray": 4.0, "weights": 6.0}
    capsys.readouterr()
    with recorded(a_folder(tmp_path / "second"), num_steps=9), setup_progress(("Ray", "weights")):
        begin_setup_part("Ray")
        begun = status_of(RunFolder(tmp_path / "second"))
        assert begun.stage_ends_at == pytest.approx(begun.at + 10, abs=0.01)
        begin_setup_part("weights")
    assert "set-up 1/2" in capsys.readouterr().err


def test_a_failed_write_is_reported_once_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_folder(tmp_path / "mine")
    folder.log.mkdir()
    folder.status.mkdir()
    with recorded(folder, num_steps=9):
        for step in (1, 2):
            report_step(step, num_steps=9, metrics=METRICS)
    err = capsys.readouterr().err
    assert err.count("cannot be written") == 1 and "step 2/9" in err


def test_a_status_of_another_version_is_none(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_driver_status(path) is None
    for text in ("", "[]", '{"state": "running"}', '{"unknown": 1}'):
        path.write_text(text)
        assert read_driver_status(path) is None


def test_a_step_has_no_metrics_in_the_log(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "mine")
    heartbeat = Heartbeat(folder, num_steps=9)
    step = StepFinished(step=4, num_steps=9, text="step 4/9", left_s=50.0, metrics=METRICS)
    heartbeat.emit(record_of(step, at=7.0))
    heartbeat.emit(record_of("fine", at=8.0))
    assert (status_of(folder).ends_at, status_of(folder).at) == (57.0, 8.0)
    assert len(folder.log.read_text()) < 300
