"""SFT batches: order of demonstrations over the steps, and a stage that learns them."""

from collections import Counter
from dataclasses import fields
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.trajectory import StopReason
from learners.batch.packing import micro_batches
from learners.batch.samples import samples_from_table
from learners.config import LearnerConfig
from learners.sft.batches import DemonstrationSamples, batch_indices, num_sft_steps
from learners.sft_config import SftConfig
from learners.training.optimizer_step import accumulate_gradients, apply_gradients, make_optimizer, sft_sums
from tests.effort import examples
from tests.learners.tiny_parts import make_table, make_turn, random_table, tiny_policy

pytestmark = pytest.mark.medium


def test_each_pass_takes_every_demonstration_once_and_passes_differ():
    steps = [batch_indices(10, batch_size=4, step=step, seed=1) for step in range(5)]
    drawn = [index for step in steps for index in step]
    assert all(len(step) == 4 for step in steps)
    assert Counter(drawn[:10]) == Counter(drawn[10:]) == Counter(range(10))
    assert drawn[:10] != drawn[10:]
    assert steps[3] == batch_indices(10, batch_size=4, step=3, seed=1)
    assert steps[3] != batch_indices(10, batch_size=4, step=3, seed=2)


def test_a_batch_larger_than_the_demonstrations_repeats_them():
    assert Counter(batch_indices(3, batch_size=7, step=0, seed=0)).most_common()[-1][1] == 2


def test_number_of_steps_covers_the_epochs():
    assert num_sft_steps(SftConfig(num_epochs=2, batch_size=8), num_samples=10) == 3
    assert num_sft_steps(SftConfig(num_epochs=2, batch_size=8), num_samples=0) == 0


def test_demonstrations_need_no_reward():
    table = random_table(group_id=0).drop_columns(["reward"])
    assert len(DemonstrationSamples([table, table])) == 8


TOKENS = st.lists(st.integers(0, 9), max_size=3)
TURNS = st.lists(st.tuples(TOKENS, TOKENS, st.booleans()), min_size=1, max_size=4)
TRAJECTORIES = st.lists(st.tuples(TURNS, st.sampled_from(StopReason)), min_size=1, max_size=4)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(TRAJECTORIES, min_size=1, max_size=3), st.booleans())
def test_indexed_samples_equal_those_of_the_complete_tables(groups, chunked):
    """Failed trajectories, forks, turns without tokens and samples with nothing to learn are among them."""
    tables = [
        make_table(
            [
                ([make_turn(c, s, reward=0.0, forked=forked) for c, s, forked in turns], reason)
                for turns, reason in trajectories
            ],
            group_id=number,
        )
        for number, trajectories in enumerate(groups)
    ]
    if chunked:
        tables = [pa.concat_tables(tables), tables[0]]
    expected = [s for t in tables for s in samples_from_table(t, advantages=np.ones(t.num_rows))]
    demonstrations = DemonstrationSamples(tables)
    assert len(demonstrations) == len(expected)
    for mine, theirs in zip(demonstrations, expected, strict=True):
        for field in fields(mine):
            one, other = getattr(mine, field.name), getattr(theirs, field.name)
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)
            assert not isinstance(one, np.ndarray) or one.dtype == other.dtype


def test_sft_memorises_its_demonstrations():
    policy, device = tiny_policy(dtype=torch.float32), torch.device("cpu")
    samples = DemonstrationSamples([random_table(group_id=0)])
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    optimizer = make_optimizer(policy, config=LearnerConfig())
    losses = []
    for _ in range(60):
        batches = micro_batches(samples, max_tokens=64, rank=0, num_ranks=1, seed=0)
        loss_fn = partial(sft_sums, num_tokens=num_tokens)
        sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=device, num_ranks=1)
        apply_gradients(policy, optimizer, lr=0.01, max_grad_norm=10.0, loss=sums["loss"])
        losses.append(sums["loss"])
    assert losses[0] > 3.0
    assert losses[-1] < 0.3
