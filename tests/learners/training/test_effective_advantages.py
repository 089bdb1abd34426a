"""Effective advantages of a loss with a KL, against a scoring pass without a loss."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from learners.advantages.group_advantages import gym_advantages
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample, samples_from_table
from learners.config import LearnerConfig
from learners.loss_config import ReferenceKlConfig
from learners.training.effective_advantages import EffectiveAdvantages
from learners.training.forward_scoring import TurnKey, scores_by_turn, turn_logprobs
from learners.training.optimizer_step import grpo_sums
from tests.learners.tiny_parts import random_table, scorer_of, tiny_policy

MAX_TOKENS, SEED = 48, 3
CONFIG = LearnerConfig(kl=ReferenceKlConfig(type="k1", coefficient=0.5))


def three_groups() -> list[TrainingSample]:
    tables = [random_table(group_id=group_id) for group_id in range(3)]
    return [
        sample
        for table in tables
        for sample in samples_from_table(table, advantages=gym_advantages(table, CONFIG.credit_of))
    ]


def took(samples: list[TrainingSample], *, rank: int, num_ranks: int) -> tuple[dict[TurnKey, float], int]:
    """By turn, of one rank's micro-batches, and how many these are. The reference model says 0 of every
    token."""
    policy, used = tiny_policy(), EffectiveAdvantages()
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    loss_fn = partial(grpo_sums, config=CONFIG, num_tokens=num_tokens, policy_version=0, record=used.record)
    count = 0
    for batch in micro_batches(samples, max_tokens=MAX_TOKENS, rank=rank, num_ranks=num_ranks, seed=SEED):
        zeros = torch.zeros(len(batch.targets), dtype=torch.float64)
        loss_fn(batch, policy(batch), reference=lambda batch, zeros=zeros: zeros)
        count += 1
    found = used.by_turn(samples, max_tokens=MAX_TOKENS, rank=rank, num_ranks=num_ranks, seed=SEED)
    return found, count


def test_a_turn_has_its_advantage_minus_the_mean_penalty_of_its_tokens():
    samples = three_groups()
    found, num_batches = took(samples, rank=0, num_ranks=1)
    assert num_batches > 2
    logprobs = scores_by_turn(samples, scorer_of(tiny_policy())(samples, score=turn_logprobs))
    given = {
        (sample.group_id, sample.trajectory, turn): advantage
        for sample in samples
        for turn, advantage in zip(sample.turns.tolist(), sample.advantages.tolist(), strict=True)
    }
    expected = {key: given[key] - 0.5 * logprobs[key] for key in given}
    assert found == pytest.approx(expected, abs=1e-6)


def test_each_turn_is_reported_by_exactly_one_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    samples = three_groups()
    whole, _ = took(samples, rank=0, num_ranks=1)
    first, second = (took(samples, rank=rank, num_ranks=2)[0] for rank in range(2))
    assert first.keys() == second.keys() == whole.keys()
    assert not any(first[key] and second[key] for key in whole), "each is one rank's"
    assert {key: first[key] + second[key] for key in whole} == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ("none", False),
        ("k1", False),
        ({"type": "k2", "coefficient": 0.1}, False),
        ({"type": "k3", "coefficient": 0.1}, False),
        ({"type": "k1", "coefficient": 0.1}, True),
    ],
)
def test_only_k1_with_a_coefficient_is_subtracted_from_the_advantages(kl: object, expected: bool):
    assert LearnerConfig.model_validate({"kl": kl}).subtracts_kl == expected
