"""The tracker: every step's metrics are on disk, even if W&B fails."""

import json
import math
import time
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load
from cluster.console.events import WaitReason
from cluster.console.log import LOG
from cluster.console.progress import stage_progress, step_line, times_line
from cluster.driver.train import train
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker
from cluster.tracking.wandb.internals import resolve_mode
from cluster.tracking.wandb.run import WandbRun
from cluster.workers.restart import MAX_RESTARTS, LostBufferError, RestartsExhaustedError
from tests.cluster.console.records import record_of

pytestmark = pytest.mark.medium

METRICS = {
    "time/step_s": 4.21,
    "rollout/reward/mean": 0.414,
    "rollout/turns/mean": 5.2,
    "rollout/tokens_per_s": 8123.0,
    "buffer/age/max": 0.0,
    "learner/idle/share": 0.064,
    "engine/idle/share": 0.02,
    "ledger/issued": 640.0,
    "ledger/trained": 512.0,
    "ledger/dropped/flat": 112.0,
    "ledger/dropped/failed": 0.0,
    "ledger/in_flight": 16.0,
}


def config_at(path: Path, *, mode: str) -> RunConfig:
    return load(None, {"run.folder": str(path), "grpo.num_steps": "60", "tracking.mode": mode})


def folder_of(config: RunConfig) -> RunFolder:
    folder = RunFolder.of(config)
    folder.create(config)
    return folder


def test_the_times_line_has_this_form() -> None:
    def step(*seconds: float, learner: float, engine: float) -> dict[str, float]:
        names = ("wait", "update", "sync", "weights", "report")
        stages = {f"time/{name}_s": one for name, one in zip(names, seconds, strict=True)}
        idle = {"learner/idle/share": learner, "engine/idle/share": engine}
        return {**stages, **idle, "time/step_s": sum(seconds)}

    steps = [
        step(1.0, 2.0, 0.0, 0.5, 0.5, learner=0.4, engine=0.0),
        step(0, 12, 0, 0, 0, learner=0, engine=1),
    ]
    assert times_line(steps) == (
        "2 steps of 8.0s: wait 6% update 88% sync 0% weights 3% report 3% | idle learner 10% engine 75%"
    )


def test_a_step_in_which_an_engine_was_replaced_has_no_share_of_it() -> None:
    known = {f"time/{name}_s": 1.0 for name in ("wait", "update", "sync", "weights", "report")}
    known |= {"time/step_s": 5.0, "learner/idle/share": 0.5}
    read_back = [{**known, "engine/idle/share": share} for share in (None, 0.25)]
    assert times_line(read_back).endswith("| idle learner 50% engine 25%")
    assert times_line(read_back[:1]).endswith("| idle learner 50% engine -")
    assert "idle learner 6% engine - |" in step_line(
        12, num_steps=60, metrics={**METRICS, "engine/idle/share": math.nan}
    )


def test_the_step_line_has_this_form() -> None:
    assert step_line(12, num_steps=60, metrics=METRICS) == (
        "step 12/60 | 4.2s | reward 0.41 | turns 5.2 | lag 0 | 8.1k tok/s | "
        "idle learner 6% engine 2% | dropped flat 112 | "
        "ledger 640 = 512 + 112 + 16"
    )


def test_metrics_jsonl_has_one_object_per_step_and_no_nan(tmp_path: Path) -> None:
    config = config_at(tmp_path, mode="disabled")
    folder = folder_of(config)
    with Tracker(folder, config=config) as tracker:
        tracker.log_step(1, metrics=METRICS)
        tracker.log_step(2, metrics={**METRICS, "rollout/reward/travel": math.nan})
    first, second = map(json.loads, folder.metrics.read_text().splitlines())
    assert first == {"step": 1, **METRICS}
    assert second["rollout/reward/travel"] is None


def test_a_resume_deletes_undone_steps_and_an_incomplete_line(tmp_path: Path) -> None:
    config = config_at(tmp_path, mode="disabled")
    folder = folder_of(config)
    with Tracker(folder, config=config) as tracker:
        for step in (1, 2, 3):
            tracker.log_step(step, metrics=METRICS)
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "learn')
    with Tracker(folder, config=config, resume_step=2) as tracker:
        tracker.log_step(3, metrics=METRICS)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3]


def test_auto_is_online_with_a_key_and_offline_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert resolve_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert resolve_mode("auto") == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert resolve_mode("auto") == "online"
    assert resolve_mode("disabled") == "disabled"


def test_an_unreadable_netrc_has_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    files = {"folder": None, "broken": b"machine", "binary": b"machine api.wandb.ai\xff login", "loop": None}
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        monkeypatch.setenv("NETRC", str(tmp_path / name))
        assert resolve_mode("auto") == "offline", name
    monkeypatch.setenv("NETRC", "~no-such-user/.netrc")
    assert resolve_mode("auto") == "offline", "the home of an unknown user"


def test_repeated_steps_keep_their_first_line(tmp_path: Path) -> None:
    config = config_at(tmp_path, mode="disabled")
    folder = folder_of(config)
    with Tracker(folder, config=config) as tracker:
        for step in (1, 2, 3):
            tracker.log_step(step, metrics=METRICS)
    before = folder.metrics.read_text()
    with Tracker(folder, config=config, resume_step=3) as tracker:
        for step in (2, 3):  # from the checkpoint of step 1
            tracker.log_step(step, metrics={**METRICS, "time/step_s": 99.0})
        assert folder.metrics.read_text() == before
        tracker.log_step(4, metrics=METRICS)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_alerts_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_at(tmp_path, mode="disabled")
    with Tracker(folder_of(config), config=config) as tracker:
        for step in (1, 2):
            tracker.log_step(step, metrics={**METRICS, "learner/logprob_gap/mean": 0.015})
    assert capsys.readouterr().err.count("alert: engine and learner drift apart:") == 1


def test_stuck_rollouts_raise_an_alert_before_the_first_step_and_without_wandb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_at(tmp_path, mode="disabled")
    with Tracker(folder_of(config), config=config):
        for after in (0.0, 601.0, 1202.0):
            LOG.handle(record_of(WaitReason(text="step 1 waits for groups: 0 of 4"), at=1e9 + after))
    LOG.handle(record_of(WaitReason(text="step 1 waits for groups: 0 of 4"), at=2e9))
    LOG.debug(WaitReason(text=""))
    assert capsys.readouterr().err.count("alert: rollouts are stuck: step 1 waits for groups, for 601 s") == 1


class RecordingRun:
    """Records how a W&B run ends."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def alert(self, title: str, text: str, **kwargs: object) -> None:
        self.calls.append(title)

    def finish(self, *, exit_code: int) -> None:
        self.calls.append(exit_code)


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (LostBufferError("the buffer has died"), [0]),
        (RuntimeError("it broke"), ["the run has stopped", 1]),
        (KeyboardInterrupt(), [0]),
    ],
)
def test_a_run_that_restarts_has_not_stopped_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, calls: list[object]
) -> None:
    run = RecordingRun()
    monkeypatch.setattr(WandbRun, "_init", lambda self, mode: run)
    monkeypatch.setattr(WandbRun, "_try", lambda self, work: None)
    config = config_at(tmp_path, mode="offline")
    with pytest.raises(type(error)), Tracker(folder_of(config), config=config):
        raise error
    assert run.calls == calls


def test_a_run_without_restarts_left_has_stopped_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart has its own tracker, which expects the run to continue."""
    run = RecordingRun()
    monkeypatch.setattr(WandbRun, "_init", lambda self, mode: run)
    monkeypatch.setattr(WandbRun, "_try", lambda self, work: None)
    config = config_at(tmp_path, mode="offline")

    def lose_buffer(config: RunConfig, folder: RunFolder) -> None:
        with Tracker(folder, config=config):
            raise LostBufferError("the buffer has died")

    folder_of(config)
    monkeypatch.setattr("cluster.driver.train._train", lose_buffer)
    with pytest.raises(RestartsExhaustedError):
        train(config, as_json=False)
    assert run.calls == [*[0] * (MAX_RESTARTS + 1), "the run has stopped", 1]


def test_a_hanging_wandb_delays_a_restart_only_shortly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WandbRun, "_init", lambda self, mode: time.sleep(5))
    monkeypatch.setattr("cluster.tracking.wandb.run.RESTART_TIMEOUT_S", 0.1)
    config = config_at(tmp_path, mode="online")
    start = time.monotonic()
    with pytest.raises(LostBufferError), Tracker(folder_of(config), config=config):
        raise LostBufferError("the buffer has died")
    assert time.monotonic() - start < 4


class BrokenRun:
    """A W&B run of which every method and attribute fails."""

    def __getattr__(self, name: str) -> "BrokenRun":
        return self

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")


def test_a_broken_wandb_is_one_warning_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WandbRun, "_init", lambda self, mode: BrokenRun())
    monkeypatch.setattr("cluster.tracking.wandb.media.ARCHIVE_TIMEOUT_S", 0.0)
    config = config_at(tmp_path, mode="online")
    folder = folder_of(config)
    with Tracker(folder, config=config) as tracker:
        for step in (1, 2, 3):
            tracker.log_step(step, metrics=METRICS)
    assert len(folder.metrics.read_text().splitlines()) == 3
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert warning.startswith("W&B: ") and "no network" in warning


def test_a_hanging_wandb_does_not_delay_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WandbRun, "_init", lambda self, mode: time.sleep(5))
    monkeypatch.setattr("cluster.tracking.wandb.run.CLOSE_TIMEOUT_S", 0.1)
    config = config_at(tmp_path, mode="online")
    start = time.monotonic()
    with Tracker(folder_of(config), config=config) as tracker:
        for step in range(1, 6):
            tracker.log_step(step, metrics=METRICS)
    assert time.monotonic() - start < 4
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert warning.startswith("W&B: it did not finish within 0.1 s; the run continues")


def test_a_stage_has_ten_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_progress("sft", total=100) as advance:
        for _ in range(100):
            advance(1, "loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("sft 100/100 |")
    assert lines[-1].endswith("| loss 1.0")
