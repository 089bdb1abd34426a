"""Trajectories that reached the limit of turns or tokens, with `truncated=mask`."""

import numpy as np
import pytest

from actors.trajectory import StopReason
from learners.advantages.estimators import CreditRule
from learners.advantages.group_advantages import gym_advantages
from learners.batch.samples import samples_from_table, without_truncated
from tests.learners.tiny_parts import make_table, make_turn

REASONS = (
    StopReason.TERMINATED,
    StopReason.MAX_TURNS,
    StopReason.NO_TOOL_CALL,
    StopReason.MAX_TOKENS,
    StopReason.ERROR,
)
RULE = CreditRule(advantage="dr_grpo", trajectory_score="sum", turn_credit="equalized", gamma=1.0)


def table_of(group_id: int = 0, *, reasons: tuple[StopReason, ...] = REASONS):
    """One turn each; rewards 0, 1, 2, ..."""
    turns = [[make_turn([1, 2], [3, 4], reward=float(i), forked=True)] for i in range(len(reasons))]
    return make_table(list(zip(turns, reasons, strict=True)), group_id=group_id)


def test_truncated_trajectories_give_no_sample_and_are_counted():
    tables = [table_of(0), table_of(1)]
    samples = [s for t in tables for s in samples_from_table(t, advantages=np.ones(t.num_rows))]
    kept, num_masked = without_truncated(samples, tables=tables)
    assert [(s.group_id, s.trajectory) for s in samples] == [(g, i) for g in range(2) for i in range(4)]
    assert [(s.group_id, s.trajectory) for s in kept] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert num_masked == 4


def test_truncated_trajectories_stay_in_the_baseline_of_their_group():
    """Rewards 0, 1, 2, 3 with the mean 1.5: those that ended by themselves get -1.5 and 0.5, not -1 and 1."""
    table = table_of()
    samples = samples_from_table(table, advantages=gym_advantages(table, lambda gym: RULE))
    kept, _ = without_truncated(samples, tables=[table])
    assert [s.advantages.tolist() for s in kept] == [
        pytest.approx([-1.5]),
        pytest.approx([0.5]),
    ]


def test_both_parts_of_a_truncated_forked_trajectory_are_left_out_and_counted_once():
    turns = [make_turn([1, 2], [3], reward=0.0, forked=True), make_turn([5, 6], [7], reward=1.0, forked=True)]
    table = make_table([(turns, StopReason.MAX_TOKENS)])
    samples = samples_from_table(table, advantages=np.ones(2))
    assert len(samples) == 2
    assert without_truncated(samples, tables=[table]) == ([], 1)
