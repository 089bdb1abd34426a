"""The tracker: every step's numbers on disk, whatever W&B does."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.table import to_table
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn, as_ids
from cluster.config import RunConfig, load
from cluster.console import stage_progress, step_line, times_line
from cluster.results import evaluation_rows
from cluster.run_folder import RunFolder
from cluster.scores import Outcome
from cluster.tracking import Tracker, dialogue_rows
from cluster.wandb_run import WandbRun, resolve_mode
from simulators.message import Action
from simulators.task import TaskKey

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


def a_group() -> pa.Table:
    completion = Completion.of((1, 2), logprobs=(-0.1, -0.2), policy_versions=(0, 0))
    turn = Turn(
        context_ids=as_ids((0,)),
        forked=True,
        completion=completion,
        text="<tool_call>",
        action=Action(choice="answer", content="F3"),
        feedback="Right.",
        reward=1.0,
    )
    key = TaskKey(gym="function", split="train", index=3, seed=0, difficulty=0)
    silent = Trajectory(
        task_key=key, system="Rules.", opening="Hello.", turns=(), stop_reason=StopReason.ENGINE_ERROR
    )
    solved = replace(silent, turns=(turn,), stop_reason=StopReason.TERMINATED)
    return to_table(GroupOrder(group_id=0, task_key=key, group_size=2, seed=0), [silent, solved])


def test_the_line_of_a_runs_times_reads_like_this() -> None:
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


def test_step_line_reads_like_this() -> None:
    assert step_line(12, num_steps=60, metrics=METRICS) == (
        "step 12/60 | 4.2s | reward 0.41 | turns 5.2 | lag 0 | 8.1k tok/s | "
        "idle learner 6% engine 2% | dropped flat 112 | "
        "ledger 640 = 512 + 112 + 16"
    )


def test_metrics_has_one_object_a_step_and_no_nan(tmp_path: Path) -> None:
    config = config_at(tmp_path, mode="disabled")
    folder = folder_of(config)
    with Tracker(folder, config=config) as tracker:
        tracker.log_step(1, metrics=METRICS)
        tracker.log_step(2, metrics={**METRICS, "rollout/reward/travel": math.nan})
    first, second = map(json.loads, folder.metrics.read_text().splitlines())
    assert first == {"step": 1, **METRICS}
    assert second["rollout/reward/travel"] is None


def test_resume_cuts_the_steps_that_are_trained_again_and_a_half_line(tmp_path: Path) -> None:
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


def test_dialogue_rows_are_in_reading_order() -> None:
    rows = dialogue_rows(a_group().slice(1), step=7)
    assert [(row.turn, row.who, row.text, row.reward) for row in rows] == [
        (0, "system", "Rules.", 0.0),
        (0, "user", "Hello.", 0.0),
        (1, "policy", "<tool_call>", 0.0),
        (1, "feedback", "Right.", 1.0),
    ]
    assert {(row.step, row.gym, row.trajectory, row.stop_reason) for row in rows} == {
        (7, "function", 1, "terminated")
    }


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


class BrokenRun:
    """A W&B run that fails at everything."""

    def log(self, entry: dict[str, Any]) -> None:
        raise ConnectionError("no network")

    def finish(self) -> None:
        raise AssertionError("a run that broke is not finished")


def test_broken_wandb_is_one_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WandbRun, "_init", lambda self: BrokenRun())
    config = config_at(tmp_path, mode="online")
    folder = folder_of(config)
    with Tracker(folder, config=config) as tracker:
        for step in (1, 2, 3):
            tracker.log_step(step, metrics=METRICS)
    assert len(folder.metrics.read_text().splitlines()) == 3
    assert capsys.readouterr().err.count("warning: W&B: it stopped taking data (no network)") == 1


def test_wandb_that_hangs_does_not_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WandbRun, "_init", lambda self: time.sleep(5))
    monkeypatch.setattr("cluster.wandb_run.CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("cluster.wandb_run.QUEUE_STEPS", 2)
    config = config_at(tmp_path, mode="online")
    start = time.monotonic()
    with Tracker(folder_of(config), config=config) as tracker:
        for step in range(1, 6):
            tracker.log_step(step, metrics=METRICS)
    assert time.monotonic() - start < 2
    assert capsys.readouterr().err.count("warning: W&B") == 1


@pytest.mark.slow
def test_wandb_offline_keeps_scalars_and_dialogues_and_a_resumed_run_its_id(tmp_path: Path) -> None:
    config = config_at(tmp_path, mode="offline")
    folder = folder_of(config)
    for resume_step in (0, 1):
        time.sleep(1.1 * resume_step)  # W&B names an offline run's folder by the second.
        with Tracker(folder, config=config, resume_step=resume_step) as tracker:
            tracker.log_sft(1, metrics={"sft/loss": 2.0})
            rows = dialogue_rows(a_group().slice(1), step=resume_step + 1)
            tracker.log_step(resume_step + 1, metrics=METRICS, dialogues=rows)
            outcome = Outcome(gym="function", task_id="task", score=1.0, num_turns=1)
            tracker.log_evaluation(evaluation_rows([outcome], stage="grpo", seed=0), step=resume_step + 1)
    run_id = (folder.wandb / "run_id").read_text()
    runs = list(folder.wandb.glob(f"offline-run-*-{run_id}"))
    assert len(runs) == 2
    for run in runs:
        assert next(run.glob("*.wandb")).stat().st_size > 0
        tables = list(run.glob("files/media/table/rollout/*.table.json"))
        assert "Right." in tables[0].read_text()


def test_stage_progress_is_sparse_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_progress("sft", total=100) as advance:
        for _ in range(100):
            advance(1, "loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("sft 100/100 |")
    assert lines[-1].endswith("| loss 1.0")
