"""A run that is killed with all its processes at random moments trains the same groups, and ends with the
same weights bit for bit, as an undisturbed one."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from learners.buffer.log.events import EventKind
from learners.buffer.log.segments import read_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[3]
NUM_KILLS = int(os.environ.get("USERRL_TEST_KILLS", "1"))
"""20 in the acceptance run."""
NUM_STEPS = 8
WAIT_S = 300.0
RECIPE = """
[run]
name = "{name}"
folder = "{folder}"
[gyms.weights]
telepathy = 1.0
travel = 1.0
[policy.tiny]
hidden_size = 32
num_layers = 1
num_heads = 2
intermediate_size = 64
[rollout]
group_size = 4
dialogues_per_actor = 16
max_completion_tokens = 48
[engine]
max_model_len = 2048
[reward.weights]
environment = 1.0
length = 1.0  # differs between dialogues with equal scores: there is something to train
[buffer]
groups_per_step = 3
max_off_policy_steps = 0
[learner]
num_threads = 1
max_logprob_gap = 1e9  # the engine does not sample from the learner's policy
[sft]
num_demonstrations = 0
[grpo]
num_steps = {num_steps}
[checkpoint]
every_steps = 3
[evaluation]
tasks_per_gym = 1
"""


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(name=name, folder=folder, num_steps=NUM_STEPS))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.killed_run", str(recipe)],
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "offline"},
        stderr=(folder / f"{name}.err").open("a"),
        text=True,
    )


def finish(folder: Path, name: str) -> None:
    process = start(folder, name)
    assert process.wait(timeout=WAIT_S) == 0, (folder / f"{name}.err").read_text()


def num_entries(run: Path) -> int:
    with suppress(FileNotFoundError):  # a segment that was deleted while it was read
        if entries := read_log(run / "journal"):
            return entries[-1].number + 1
    return 0


def kill_at(folder: Path, name: str, *, entry: int, later_s: float) -> bool:
    """Kills driver, raylet and workers together, `later_s` after the journal has this entry: returns False if
    the run has finished before."""
    process = start(folder, name)
    deadline = time.monotonic() + WAIT_S
    while num_entries(folder / name) <= entry and process.poll() is None:
        assert time.monotonic() < deadline, (folder / f"{name}.err").read_text()
        time.sleep(0.02)
    time.sleep(later_s)
    if process.poll() is not None:
        assert process.returncode == 0, (folder / f"{name}.err").read_text()
        return False
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs([one for one in family if isinstance(one, psutil.Process)], timeout=30)
    process.wait(timeout=30)
    return True


def trained_turns(run: Path) -> dict[int, dict[tuple[int, int, int], float]]:
    """By step: the advantage of every trained (group, trajectory, turn). Fails if one is there twice."""
    steps: dict[int, dict[tuple[int, int, int], float]] = {}
    seen: set[tuple[int, int, int]] = set()
    for path in sorted((run / "trajectories").glob("step-*.parquet")):
        columns = ["group_id", "trajectory", "turn", "outcome", "step", "advantage"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            key = (row["group_id"], row["trajectory"], row["turn"])
            assert key not in seen, f"{path}: {key} is in the archive twice"
            seen.add(key)
            if row["outcome"] == "trained":
                assert row["advantage"] is not None, f"{path}: {key} was trained without an advantage"
                steps.setdefault(row["step"], {})[key] = row["advantage"]
    return steps


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_run_that_is_killed_repeatedly_ends_with_the_same_weights(tmp_path: Path) -> None:
    rng = random.Random(int(os.environ.get("USERRL_TEST_SEED", "0")))
    finish(tmp_path, "undisturbed")
    wanted = trained_turns(tmp_path / "undisturbed")
    assert sorted(wanted) == list(range(1, NUM_STEPS + 1))
    # Segments before the last checkpoints are deleted, but entries keep their numbers.
    num_events = num_entries(tmp_path / "undisturbed")

    moments = sorted(rng.randrange(num_events) for _ in range(NUM_KILLS))
    num_kills = sum(
        kill_at(tmp_path, "killed", entry=moment, later_s=rng.uniform(0.0, 0.2)) for moment in moments
    )
    finish(tmp_path, "killed")
    assert num_kills >= NUM_KILLS - 1, "a run may have finished before its last kill"
    assert trained_turns(tmp_path / "killed") == wanted
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")

    def taken(name: str) -> dict[int, list[int]]:
        entries = [one for one in read_log(tmp_path / name / "journal") if one.kind == EventKind.TAKEN]
        return {one.facts["policy_version"]: one.facts["group_ids"] for one in entries}

    both = taken("killed").keys() & taken("undisturbed").keys()
    assert both and all(taken("killed")[one] == taken("undisturbed")[one] for one in both)
