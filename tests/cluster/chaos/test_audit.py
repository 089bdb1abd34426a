"""Accounts are read off rows and the last checkpoint: what is missing, twice or too old is found."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.chaos.audit import ChaosAudit, account, rewards
from cluster.config.recipe import BadInput
from cluster.run_folder.paths import STATE_FILE, RunFolder

Row = tuple[int, int, int, str, list[int]]
"""(group, trajectory, turn, outcome, versions of its tokens)"""
GROUP_0: list[Row] = [(0, 0, 0, "trained", [0, 0]), (0, 0, 1, "trained", [0]), (0, 1, 0, "trained", [0])]
GROUP_1: list[Row] = [(1, 0, 0, "trained", [0, 1]), (1, 1, 0, "dropped:failed", [])]
GROUP_2: list[Row] = [(2, 0, 0, "dropped:flat", [1]), (2, 1, 0, "dropped:flat", [1])]


def write(folder: RunFolder, name: str, rows: list[Row], *, step: int) -> None:
    folder.trajectories.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "group_id": pa.array([row[0] for row in rows], pa.int64()),
            "trajectory": pa.array([row[1] for row in rows], pa.int32()),
            "turn": pa.array([row[2] for row in rows], pa.int32()),
            "outcome": [row[3] for row in rows],
            "policy_versions": pa.array([row[4] for row in rows], pa.list_(pa.int32())),
            "step": pa.array([step] * len(rows), pa.int64()),
        }
    )
    pq.write_table(table, folder.trajectories / f"{name}.parquet")


def checkpoint(
    folder: RunFolder, *, next_group_id: int, open_groups: tuple[int, ...] = (), settled: dict[str, int]
) -> None:
    path = folder.checkpoints / "step-00002"
    path.mkdir(parents=True)
    buffer: dict[str, Any] = {
        "next_group_id": next_group_id,
        "open_orders": [{"group_id": group} for group in open_groups],
        "ledger": {"issued": 2 * next_group_id, "settled": settled},
    }
    (path / STATE_FILE).write_text(json.dumps({"buffer": buffer}))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write(folder, "step-00001", GROUP_0, step=1)
    write(folder, "step-00002", [*GROUP_1, *GROUP_2], step=2)
    write(folder, "evaluation-sft", [(0, 0, 0, "trained", [0])], step=0)
    return folder


SETTLED = {"trained": 3, "failed": 1, "flat": 2}


def test_a_run_in_which_nothing_went_wrong(folder: RunFolder) -> None:
    checkpoint(folder, next_group_id=4, open_groups=(3,), settled=SETTLED)
    assert account(folder, max_off_policy_steps=1) == ChaosAudit(lost=0, duplicated=0, stale=0)


def test_a_token_older_than_the_bound_at_the_moment_of_use_is_stale(folder: RunFolder) -> None:
    checkpoint(folder, next_group_id=4, open_groups=(3,), settled=SETTLED)
    assert account(folder, max_off_policy_steps=0).stale == 1  # group 1's first token, one version behind


def test_a_group_that_is_nowhere_is_lost(folder: RunFolder) -> None:
    checkpoint(folder, next_group_id=5, open_groups=(3,), settled=SETTLED)
    assert account(folder, max_off_policy_steps=1).lost == 1


def test_a_trajectory_that_the_ledger_has_settled_and_the_rows_lack_is_lost(folder: RunFolder) -> None:
    checkpoint(folder, next_group_id=4, open_groups=(3,), settled={**SETTLED, "trained": 4})
    assert account(folder, max_off_policy_steps=1).lost == 1


def test_rows_that_came_after_the_checkpoint_are_no_loss(folder: RunFolder) -> None:
    checkpoint(folder, next_group_id=3, open_groups=(2,), settled={"trained": 3, "failed": 1})
    assert account(folder, max_off_policy_steps=1) == ChaosAudit(lost=0, duplicated=0, stale=0)


def test_a_group_under_two_steps_or_with_a_turn_twice_is_duplicated(folder: RunFolder) -> None:
    checkpoint(folder, next_group_id=4, open_groups=(3,), settled=SETTLED)
    write(folder, "step-00003", GROUP_0, step=3)
    write(folder, "step-00004-part-000", [GROUP_2[0], GROUP_2[0]], step=2)
    assert account(folder, max_off_policy_steps=5).duplicated == 2


def test_a_run_that_ended_before_grpo_has_lost_nothing(tmp_path: Path) -> None:
    assert account(RunFolder(tmp_path), max_off_policy_steps=1) == ChaosAudit(lost=0, duplicated=0, stale=0)


def test_rows_without_a_checkpoint_cannot_be_accounted_for(folder: RunFolder) -> None:
    with pytest.raises(BadInput, match="rows and no checkpoint there"):
        account(folder, max_off_policy_steps=1)


def test_a_step_that_was_taken_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "rollout/reward/mean": 0.1}, {"step": 1, "rollout/reward/mean": 0.2}, {"step": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rewards(path) == {1: 0.2}
