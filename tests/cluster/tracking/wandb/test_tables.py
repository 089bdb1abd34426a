"""Tables and histograms of dialogues equal the Parquet files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.evaluation.results import read_rows
from cluster.tracking.wandb.tables import (
    choose_groups,
    dialogue_table,
    evaluation_matrix,
    evaluation_media,
    histogram,
    side_by_side,
    step_media,
)
from tests.cluster.sample_run_folders import GROUP_SIZE, make_run


def step_file_of(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", num_steps=1).trajectories / "step-00001.parquet"


def test_the_dialogue_table_has_both_sides_in_order(tmp_path: Path) -> None:
    table = dialogue_table(pq.read_table(step_file_of(tmp_path)), step=1, groups=[10])
    names = ("dialogue", "turn", "policy", "user", "env_reward", "advantage", "value", "credit", "gain")
    rows = [[row[table.columns.index(name)] for name in names] for row in table.rows[:5]]
    expected = [
        [0, 0, "", "hello, this is task 10", None, None, None, None, None],
        [0, 1, "hello 10 0 0", "answer 0 ", 1.0, -10.0, 5.0, 10.0, None],
        [1, 0, "", "hello, this is task 10", None, None, None, None, None],
        [1, 1, "hello 10 1 0", "answer 0 ", 0.0, -9.9, 5.05, 10.1, None],
        [1, 2, "hello 10 1 1", "answer 1 ", 1.0, -9.89, 5.055, 10.11, None],
    ]
    assert [row[:4] for row in rows] == [row[:4] for row in expected]
    assert [row[4:] for row in rows] == [pytest.approx(row[4:], abs=1e-5) for row in expected]
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert first["system"] == "Be kind."
    assert (first["gym"], first["simulator"], first["persona"]) == ("function", "rules", "plain")
    assert (first["stop_reason"], first["outcome"]) == ("terminated", "trained")


def test_the_dialogues_of_a_group_are_columns(tmp_path: Path) -> None:
    table = side_by_side(pq.read_table(step_file_of(tmp_path)), group=10)
    assert table.columns == ("turn", *(f"dialogue {number}" for number in range(GROUP_SIZE)))
    assert [row[0] for row in table.rows] == ["task", "end", "turn 1", "turn 2"]
    assert table.rows[1][1:3] == ("terminated, score 1.000", "terminated, score 1.000")
    assert table.rows[2][1] == (
        "POLICY: hello 10 0 0\nUSER: answer 0 \n"
        "reward +1.000 | advantage -10.000 | value +5.000 | credit +10.000"
    )
    assert table.rows[3][1] == "", "it has one turn only"


def test_whole_groups_are_chosen_one_gym_after_the_other() -> None:
    groups = [("a", 1, 4), ("a", 2, 4), ("b", 3, 4), ("b", 4, 4)]
    light = pa.table(
        {
            "gym": [gym for gym, _, size in groups for _ in range(size)],
            "group_id": [group for _, group, size in groups for _ in range(size)],
            "trajectory": [i for _, _, size in groups for i in range(size)],
            "outcome": [
                "dropped:flat" if group == 3 else "trained" for _, group, s in groups for _ in range(s)
            ],
        }
    )
    assert choose_groups(light, step=0, most_dialogues=8) == [1, 4]
    assert choose_groups(light, step=1, most_dialogues=8) == [4, 1]
    assert choose_groups(light, step=0, most_dialogues=1) == [1], "at least one"
    assert choose_groups(light, step=0, most_dialogues=100) == [1, 4, 2, 3]
    assert choose_groups(light, step=0, most_dialogues=0) == []


def test_histograms_count_the_dialogues_that_did_not_fail(tmp_path: Path) -> None:
    media = step_media([step_file_of(tmp_path)], step=1, most_dialogues=4)
    turns = media.histograms["rollout/turns/histogram"]
    # Four groups of 1, 2, 1 and 2 turns; the last dialogue of all failed.
    assert dict(zip((turns.edges[:-1] + 0.5).tolist(), turns.counts.tolist(), strict=True)) == {1: 8, 2: 7}
    assert media.histograms["rollout/reward/histogram"].counts.sum() == 15
    lengths = media.histograms["rollout/length/histogram"]
    assert lengths.counts.sum() == 15
    assert lengths.edges[0] <= 5 < 10 <= lengths.edges[-1]
    # The turn's number is its tokens' version; a step trains on version 0.
    ages = media.histograms["ledger/buffer/age/histogram"]
    assert dict(zip((ages.edges[:-1] + 0.5).tolist(), ages.counts.tolist(), strict=True)) == {-1: 8, 0: 16}
    # Both turns of that dialogue have none.
    assert media.histograms["train/advantage/histogram"].counts.sum() == 24 - 2


def test_parts_of_a_step_count(tmp_path: Path) -> None:
    file = step_file_of(tmp_path)
    twice = step_media([file, file], step=1, most_dialogues=0)
    assert twice.histograms["rollout/turns/histogram"].counts.sum() == 2 * 15
    assert twice.tables == {}


def test_an_evaluation_shows_all_before_it_and_its_dialogues(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=1)
    rows = read_rows(folder.evaluation)
    file = folder.trajectories / "step-00001.parquet"
    media = evaluation_media(file, rows=rows, step=1, most_dialogues=4)
    matrix = media.tables["eval/test/matrix"]
    assert matrix == evaluation_matrix(rows)
    assert [(row[0], row[3]) for row in matrix.rows] == [
        (stage, gym) for stage in ("untrained", "grpo") for gym in ("function", "travel", "average")
    ]
    scores = [row[matrix.columns.index("score")] for row in matrix.rows]
    assert scores == [row.score for row in rows]
    assert media.tables["eval/test/dialogues"].rows
    missing = evaluation_media(folder.trajectories / "no.parquet", rows=rows, step=1, most_dialogues=4)
    assert list(missing.tables) == ["eval/test/matrix"]


@pytest.mark.parametrize(
    ("values", "num_bins"), [([3, 3, 5], 3), ([0, 1000], 40), ([0.25, 0.75], 40), ([7.0], 40)]
)
def test_integers_of_a_small_range_have_a_bin_each(values: list[float], num_bins: int) -> None:
    counts = histogram(np.array(values))
    assert counts is not None
    assert len(counts.counts) == num_bins
    assert counts.counts.sum() == len(values)


def test_no_values_give_no_histogram() -> None:
    assert histogram(np.array([np.nan])) is None
