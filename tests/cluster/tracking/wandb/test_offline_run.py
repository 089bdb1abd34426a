"""An offline W&B run, read back with W&B's own reader: it has everything that the run folder has."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import load
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker
from cluster.tracking.wandb.history import SECTIONS, dashboard_key
from tests.cluster.sample_run_folders import GROUP_SIZE, make_run
from tests.cluster.tracking.wandb.wandb_records import numbers, records, rows, table

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of three steps, recorded by W&B offline."""
    folder = make_run(
        tmp_path_factory.mktemp("runs") / "quick",
        num_steps=3,
        overrides={"tracking.mode": "offline", "tracking.dialogues_per_step": "16"},
    )
    (folder.checkpoints / "step-00003").mkdir()
    (folder.checkpoints / "step-00003" / "driver.json").write_text("{}")
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    config = load(folder.config)
    with Tracker(folder, config=config, resume_step=3) as tracker:
        tracker.log_sft(10, metrics={"learner/loss": 2.0, "sft/num_samples/experts": 9.0})
    return folder


def test_every_number_of_metrics_is_in_wandb_under_its_section(tracked: RunFolder) -> None:
    lines = {line["step"]: line for line in map(json.loads, tracked.metrics.read_text().splitlines())}
    shown = {row["step"]: row for row in rows(tracked) if "time/step_s" in row}
    assert shown.keys() == lines.keys()
    for step, line in lines.items():
        for key, value in line.items():
            assert shown[step][dashboard_key(key)] == value
    keys = {key for row in rows(tracked) for key in row if "/" in key and not key.startswith("_")}
    assert {key.partition("/")[0] for key in keys} == set(SECTIONS)


def test_rows_are_numbered_from_zero_without_duplicates(tracked: RunFolder) -> None:
    assert numbers(tracked) == list(range(7))


def test_evaluations_are_at_the_step_of_their_policy(tracked: RunFolder) -> None:
    document = json.loads(tracked.evaluation.read_text())["rows"]
    shown = [row for row in rows(tracked) if "eval/test/average/score" in row]
    assert [row["step"] for row in shown] == [0, 3]
    for row, stage in zip(shown, ("untrained", "grpo"), strict=True):
        for one in document:
            if one["stage"] == stage:
                for name in ("score", "low", "high", "turns"):
                    assert row[f"eval/test/{one['gym']}/{name}"] == one[name]
    matrix = table(tracked, shown[-1]["eval/test/matrix.path"])
    assert [(row["stage"], row["gym"], row["score"]) for row in matrix] == [
        (row["stage"], row["gym"], row["score"]) for row in document
    ]


def test_the_table_of_dialogues_equals_parquet(tracked: RunFolder) -> None:
    (row,) = [row for row in rows(tracked) if row.get("step") == 2 and "rollout/dialogues.path" in row]
    turns = [turn for turn in table(tracked, row["rollout/dialogues.path"]) if turn["turn"]]
    archive = pq.read_table(tracked.trajectories / "step-00002.parquet").to_pylist()
    by_place = {(one["group_id"], one["trajectory"], one["turn"] + 1): one for one in archive}
    assert len(turns) == len(archive), "four groups of four are what a step shows"
    for turn in turns:
        one = by_place[turn["group"], turn["dialogue"], turn["turn"]]
        assert (turn["policy"], turn["user"]) == (one["text"], one["feedback"])
        assert turn["env_reward"] == one["env_reward"]
        assert (turn["gym"], turn["persona"]) == (one["gym"], one["persona"])
        assert (turn["stop_reason"], turn["outcome"]) == (one["stop_reason"], one["outcome"])
    side = table(tracked, row["rollout/group.path"])
    assert [line["turn"] for line in side] == ["task", "end", "turn 1", "turn 2"]
    assert len(side[0]) == 1 + GROUP_SIZE
    assert sum(row["rollout/turns/histogram.values"]) == 15, "one of sixteen failed"


def test_the_cold_start_has_its_own_axis(tracked: RunFolder) -> None:
    (row,) = [row for row in rows(tracked) if "sft/step" in row]
    assert (row["sft/step"], row["sft/loss"], row["sft/num_samples/experts"]) == (10, 2.0, 9.0)
    defined = {
        metric.get("glob_name") or metric["name"]: metric.get("step_metric", "")
        for metric in records(tracked, "metric")
    }
    assert {name: defined[f"{name}/*"] for name in SECTIONS} == {
        name: "sft/step" if name == "sft" else "step" for name in SECTIONS
    }


def test_artifacts_are_the_inputs_and_outputs_of_the_run(tracked: RunFolder) -> None:
    artifacts = {one["name"]: one for one in records(tracked, "artifact") if one["type"] != "run_table"}
    used = {name for name, one in artifacts.items() if one.get("use_after_commit")}
    assert used == {"userrl-code", "config-quick", "tasks"}
    made = {"checkpoint-quick", "model-quick", "results-quick", "trajectories-quick"}
    assert artifacts.keys() - used == made
    (recipe,) = artifacts["config-quick"]["manifest"]["contents"]
    assert Path(recipe["local_path"]).read_text() == tracked.config.read_text()
    (checkpoint,) = artifacts["checkpoint-quick"]["manifest"]["contents"]
    assert checkpoint["ref"] == (tracked.checkpoints / "step-00003" / "driver.json").as_uri()
    referred = {
        entry["ref"].rpartition("/")[2] for entry in artifacts["trajectories-quick"]["manifest"]["contents"]
    }
    assert referred == {path.name for path in tracked.trajectories.iterdir()}
    assert json.loads(artifacts["tasks"]["metadata"])["seed"] == load(tracked.config).run.seed
    inside = tracked.path.resolve()
    copies = [
        entry["local_path"]
        for one in artifacts.values()
        for entry in one["manifest"]["contents"]
        if "local_path" in entry
    ]
    assert all(Path(copy).is_relative_to(inside) for copy in copies), (
        "what is sent later lies in the run folder"
    )


def test_the_summary_has_best_and_last(tracked: RunFolder) -> None:
    lines = [json.loads(line) for line in tracked.metrics.read_text().splitlines()]
    summary: dict[str, Any] = {}
    for record in records(tracked, "summary"):
        summary |= record["update"]
    assert summary["rollout/reward/mean/best"] == max(line["rollout/reward/mean"] for line in lines)
    assert summary["eval/test/average/score/best_step"] == 0
