"""Laws of the packing plan, and packed micro-batches against one sample at a time."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.trajectory import StopReason
from learners.advantages.estimators import CreditRule
from learners.advantages.group_advantages import row_advantages
from learners.batch.packing import micro_batches, pack, plan
from learners.batch.samples import TrainingSample, samples_from_table
from learners.config import LearnerConfig
from learners.training.optimizer_step import accumulate_gradients, grpo_sums
from tests.learners.tiny_parts import make_table, make_turn, random_table, tiny_policy

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(LENGTHS, st.integers(1, 4), st.integers(0, 5))
def test_plan_contains_each_sample_once_and_the_same_number_of_micro_batches_per_rank(
    lengths, num_ranks, seed
):
    ranks = plan(lengths, max_tokens=64, num_ranks=num_ranks, seed=seed)
    assert sorted(i for rank in ranks for bin_ in rank for i in bin_) == list(range(len(lengths)))
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) >= 1
    assert all(sum(lengths[i] for i in bin_) <= 64 for rank in ranks for bin_ in rank)
    assert ranks == plan(lengths, max_tokens=64, num_ranks=num_ranks, seed=seed)


def test_plan_shares_work_evenly():
    ranks = plan([50, 40, 30, 20, 10, 10], max_tokens=100, num_ranks=2, seed=0)
    tokens = [sum([50, 40, 30, 20, 10, 10][i] for bin_ in rank for i in bin_) for rank in ranks]
    assert tokens == [80, 80]


def test_a_sample_too_long_is_refused_with_its_cure():
    with pytest.raises(ValueError, match="which has 65 tokens: set learner"):
        plan([65], max_tokens=64, num_ranks=1, seed=0)


def test_positions_restart_and_predictors_stand_before_their_targets():
    samples = samples_of(1)[:2]
    batch = pack(samples)
    assert batch.lengths == (samples[0].num_tokens, samples[1].num_tokens)
    assert batch.position_ids.tolist() == [*range(batch.lengths[0]), *range(batch.lengths[1])]
    assert batch.token_ids[batch.predictors + 1].equal(batch.targets)
    assert len(batch.targets) == sum(sample.num_loss_tokens for sample in samples)


def test_every_loss_token_has_the_index_of_its_sample_and_turn_and_its_weight():
    turns = [
        [make_turn([1, 2], [3, 4], reward=0.0, forked=True), make_turn([5], [6], reward=0.0, forked=False)],
        [make_turn([1], [2], reward=0.0, forked=True), make_turn([1, 3], [4, 5], reward=1.0, forked=True)],
    ]
    table = make_table([(each, StopReason.TERMINATED) for each in turns])
    samples = samples_from_table(table, advantages=np.ones(4))
    assert [sample.turns.tolist() for sample in samples] == [[0, 1], [0], [1]]
    assert {sample.gym for sample in samples} == {"function"}
    batch = pack(samples, weights=np.array([1.0, 2.0, 3.0]))
    assert batch.sequences.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.turns.tolist() == [0, 0, 1, 2, 3, 3]
    assert batch.weights.tolist() == [1.0, 1.0, 1.0, 2.0, 3.0, 3.0]
    assert set(pack(samples).weights.tolist()) == {1.0}


def test_a_turn_without_tokens_leaves_no_gap_in_turn_indices():
    """Else a step with a token of another version would look for a turn that is not there."""
    silent = [make_turn([1], [2], reward=0.0, forked=True), make_turn([3], [], reward=0.0, forked=False)]
    other = [make_turn([1], [2, 3], reward=1.0, forked=True)]
    table = make_table([(turns, StopReason.TERMINATED) for turns in (silent, other)])
    batch = pack(samples_from_table(table, advantages=np.ones(3)))
    assert batch.turns.tolist() == [0, 1, 1]
    assert batch.states.tolist() == [0, 3]
    assert batch.predictors.tolist() == [0, 3, 4]


def samples_of(num_groups: int) -> list[TrainingSample]:
    rule = CreditRule(advantage="grpo", trajectory_score="sum", gamma=1.0)
    tables = [random_table(group_id=group_id) for group_id in range(num_groups)]
    return [s for table in tables for s in samples_from_table(table, advantages=row_advantages(table, rule))]


def gradients(
    samples: list[TrainingSample], *, max_tokens: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Sums and gradients of one step's loss, packed into micro-batches of at most `max_tokens`."""
    policy = tiny_policy(temperature=0.7)
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    loss_fn = partial(grpo_sums, config=LearnerConfig(), num_tokens=num_tokens, policy_version=0)
    batches = micro_batches(samples, max_tokens=max_tokens, rank=0, num_ranks=1, seed=3)
    sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=torch.device("cpu"), num_ranks=1)
    return sums, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_packed_gives_the_gradient_of_one_sample_at_a_time():
    samples = samples_of(4)
    longest = max(sample.num_tokens for sample in samples)
    alone_sums, alone = gradients(samples, max_tokens=longest)
    packed_sums, packed = gradients(samples, max_tokens=10_000)
    assert alone_sums == pytest.approx(packed_sums, rel=1e-9)
    assert alone.keys() == packed.keys()
    for name, gradient in alone.items():
        assert torch.allclose(gradient, packed[name], rtol=0, atol=1e-9), name
        assert gradient.abs().max() > 1e-6, name


def test_an_empty_micro_batch_runs_forward_and_backward_with_zero_gradient():
    policy = tiny_policy()
    loss_fn = partial(grpo_sums, config=LearnerConfig(), num_tokens=7, policy_version=0)
    sums = accumulate_gradients(policy, [pack([])], loss_fn=loss_fn, device=torch.device("cpu"), num_ranks=1)
    assert set(sums.values()) == {0.0}
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())
