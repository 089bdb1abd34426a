"""`userrl evaluate` end to end: killed in the middle, resumed, and run again when finished."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from cluster.evaluation.resume_log import EvaluationLog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
NUM_TASKS = 60
WAIT_S = 400.0
WORDS = [
    *("evaluate", "--policy", "expert", "--gyms", "function,travel", "--simulators", "rules"),
    *("--tasks", str(NUM_TASKS), "--trials", "2", "--seed", "3", "--output", "out/e.json", "--json"),
    # Few dialogues at a time, so that the kill comes before the end.
    *("--rollout.dialogues_per_actor", "8"),
]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *WORDS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path) -> tuple[dict[str, Any], str]:
    """Runs the command to its end: returns the JSON of stdout, and stderr."""
    process = start(folder)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    return json.loads(out), err


def num_groups(journal: Path) -> int:
    return journal.read_text().count('"group"') if journal.exists() else 0


def kill_in_the_middle(folder: Path, journal: Path) -> None:
    """Kills the command once some dialogues are finished; most of Ray's processes end with their parent."""
    process = start(folder)
    deadline = time.monotonic() + WAIT_S
    while num_groups(journal) < 4:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    # Ray's agents may outlive their raylet for minutes, and hold the pipes open.
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_an_evaluation_resumes_and_a_finished_one_plays_nothing(tmp_path: Path, is_killed: bool) -> None:
    journal = tmp_path / "out" / "e.dialogues.jsonl"
    if is_killed:
        kill_in_the_middle(tmp_path, journal)
        assert 4 <= num_groups(journal) < 2 * NUM_TASKS

    printed, err = run(tmp_path)
    assert ("dialogues are finished already" in err) == is_killed
    rows = {row["gym"]: row for row in printed["rows"]}
    for gym in ("function", "travel"):
        assert (rows[gym]["n"], rows[gym]["num_tasks"], rows[gym]["num_failed"]) == (120, NUM_TASKS, 0)
        assert rows[gym]["score"] >= 0.95
        assert rows[gym]["pass_hat_k"][1] >= 0.9
    assert rows["macro"]["score"] == rows["average"]["score"] >= 0.95

    report = json.loads((tmp_path / "out" / "e.json").read_text())
    assert report["rows"] == printed["rows"]
    assert report["summary"]["macro"] == rows["macro"]["score"]
    assert report["summary"]["micro"] == rows["micro"]["score"]
    dialogues = pq.read_table(tmp_path / "out" / "e.parquet").to_pylist()
    assert len({(d["task_id"], d["trial"]) for d in dialogues}) == len(dialogues) == 240
    assert {(d["policy"], d["simulator"], d["failed"]) for d in dialogues} == {("expert", "rules", False)}
    assert "## expert with simulator rules" in (tmp_path / "out" / "e.md").read_text()

    written = journal.read_bytes()
    again, err = run(tmp_path)
    assert "240 dialogues are finished already" in err
    assert again == printed
    assert journal.read_bytes() == written
    with EvaluationLog(journal, policy="expert", settings=report["settings"]["expert"]) as kept:
        assert len(kept.evaluations()[0].outcomes) == 240
