"""`userrl train` end to end: started, stopped with Ctrl-C, resumed, finished, run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.status.status import read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
[run]
name = "job"
[gyms.weights]
travel = 1.0
[policy.tiny]
hidden_size = 64
num_layers = 2
num_heads = 2
intermediate_size = 128
[rollout]
group_size = 4
dialogues_per_actor = 32
max_completion_tokens = 24
[engine]
max_model_len = 768
[reward.weights]
environment = 1.0
turn = 0.05
no_tool_call = -0.5
[buffer]
groups_per_step = 2
[sft]
num_demonstrations = 200
num_epochs = 2.0
[grpo]
num_steps = 40
[evaluation]
tasks_per_gym = 4
every_steps = 2
validation_tasks_per_gym = 2
"""
WAIT_S = 240.0


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", "train", *words, "--run.folder", str(folder)]


def test_the_job_stops_on_ctrl_c_and_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    run = tmp_path / "job"

    first = subprocess.Popen(command(tmp_path, str(recipe)), stderr=subprocess.PIPE, text=True)
    family = wait_for_step(first, step=2)
    seen = read_status(run)
    assert (seen.is_running, seen.health) == (True, "running") and seen.step >= 2 and seen.num_steps == 40
    assert seen.driver is not None and seen.driver.pid == first.pid
    first.send_signal(signal.SIGINT)
    _, rest = first.communicate(timeout=WAIT_S)
    assert first.returncode == 130, rest
    assert "stopping after this step" in rest
    assert read_status(run).health == "stopped"
    assert_gone(family)
    stopped_at = steps_of(run)
    assert stopped_at == list(range(1, len(stopped_at) + 1))
    assert (run / "checkpoints" / f"step-{stopped_at[-1]:05d}").is_dir()

    num_steps = str(stopped_at[-1] + 2)
    again = subprocess.run(
        command(tmp_path, str(run), "--grpo.num_steps", num_steps, "--log-format=jsonl"),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stderr.splitlines()]
    assert any("resumed from checkpoint" in event.get("text", "") for event in events)
    assert [event["step"] for event in events if event["event"] == "step"] == [
        stopped_at[-1] + 1,
        stopped_at[-1] + 2,
    ]
    set_ups = [event for event in events if event.get("stage") == "set-up"]
    assert set_ups[-1]["is_over"] and set_ups[0]["left_s"] > 0
    assert (read_status(run).health, read_status(run).driver) == ("finished", None)
    assert steps_of(run) == list(range(1, int(num_steps) + 1))
    assert_whole(run)

    asked = time.monotonic()
    finished = subprocess.run(
        [*command(tmp_path, str(run), "--grpo.num_steps", num_steps), "--json"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == json.loads((run / "evaluation.json").read_text())
    assert time.monotonic() - asked < 10, "a finished run starts nothing"


def wait_for_step(process: subprocess.Popen[str], *, step: int) -> list[psutil.Process]:
    """Reads stderr up to that step's line: returns all descendants of the process at that moment."""
    assert process.stderr is not None
    deadline = time.monotonic() + WAIT_S
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if re.match(rf"step {step}/", line):
            return psutil.Process(process.pid).children(recursive=True)
        assert time.monotonic() < deadline, "".join(seen)
    raise AssertionError("it ended early: " + "".join(seen))


def assert_gone(family: list[psutil.Process]) -> None:
    """Ctrl-C leaves no process behind."""
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not [process.cmdline() for process in alive if process.is_running()]


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_whole(run: Path) -> None:
    """Everything that the README promises of a run folder."""
    stages = {row["stage"] for row in json.loads((run / "evaluation.json").read_text())["rows"]}
    assert stages == {"untrained", "sft", "grpo"}
    for name in ("config.toml", "reward_curve.png"):
        assert (run / name).stat().st_size > 0
    assert list((run / "trajectories").glob("step-*.parquet"))
    assert list((run / "wandb").glob("offline-run-*/*.wandb")) or os.environ.get("WANDB_API_KEY")
    validated = {row["stage"] for row in json.loads((run / "validation.json").read_text())["rows"]}
    due = {step for step in (0, *steps_of(run)) if step % 2 == 0 or step == steps_of(run)[-1]}
    assert validated == {f"validation-{step:05d}" for step in due}
    (best,) = (run / "checkpoints").glob("best-*")
    assert json.loads((best / "score.json").read_text())["split"] == "validation"
    for name in ("model", "best_model"):
        tokenizer = AutoTokenizer.from_pretrained(run / name)
        assert tokenizer.chat_template
        assert AutoModelForCausalLM.from_pretrained(run / name).config.vocab_size == len(tokenizer)
    assert not list(run.glob("*.partial")) + list((run / "checkpoints").glob("partial-*"))
