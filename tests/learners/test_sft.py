"""Which demonstrations make which step, and a cold start that learns."""

from collections import Counter
from functools import partial

import torch

from learners.config import LearnerConfig
from learners.packing import micro_batches
from learners.sft import batch_indices, demonstrations_from_tables, num_sft_steps
from learners.sft_config import SftConfig
from learners.step import accumulate_gradients, apply_gradients, make_optimizer, sft_sums
from tests.learners.tiny import random_table, tiny_policy


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
    assert len(demonstrations_from_tables([table, table])) == 8


def test_sft_learns_its_demonstrations_by_heart():
    policy, device = tiny_policy(dtype=torch.float32), torch.device("cpu")
    samples = demonstrations_from_tables([random_table(group_id=0)])
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
