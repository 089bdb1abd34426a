"""Learner and buffer agree on the trajectories that can be trained."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.group_summary import summarize
from actors.trajectory import GroupOrder, StopReason, Turn
from learners.advantages.estimators import CreditRule
from learners.advantages.group_advantages import row_advantages
from learners.batch.samples import samples_from_table
from tests.fakes import credited, make_key
from tests.learners.tiny_parts import make_table, make_turn

RULE = CreditRule(advantage="grpo", trajectory_score="sum", gamma=1.0)


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[list[Turn], StopReason]:
    stop_reason = draw(st.sampled_from(list(StopReason)))
    # Only a failed trajectory can have no turn.
    rewards = draw(
        st.lists(
            st.sampled_from([0.0, 0.5, math.inf, math.nan]), min_size=int(not stop_reason.failed), max_size=3
        )
    )
    turns = [
        make_turn([1, 2], [3, 4], reward=reward, forked=index == 0 or draw(st.booleans()))
        for index, reward in enumerate(rewards)
    ]
    return turns, stop_reason


@pytest.mark.medium
@settings(deadline=None)
@given(group=st.lists(trajectories(), min_size=1, max_size=6))
def test_samples_are_exactly_those_of_the_usable_trajectories(group: list[tuple[list[Turn], StopReason]]):
    table = make_table(group, group_id=3)
    order = GroupOrder(group_id=3, task_key=make_key(), group_size=len(group), seed=0)
    usable = summarize(order, credited(table), duration_s=0.0).usable
    samples = samples_from_table(table, advantages=row_advantages(table, RULE))
    if len(usable) >= 2:  # a smaller group is dropped
        assert tuple(sorted({sample.trajectory for sample in samples})) == usable
    assert {sample.trajectory for sample in samples} <= set(usable)
