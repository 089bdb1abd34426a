"""Token weights against numbers computed by hand, and laws of aggregation on the gradient of a step."""

from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.batch.aggregation import AGGREGATIONS, sample_weights, select_and_weigh, within_budget
from learners.batch.packing import micro_batches, pack
from learners.batch.samples import TrainingSample
from learners.config import LearnerConfig
from learners.loss_config import (
    CispoConfig,
    ConstantLengthConfig,
    EntropyConfig,
    GspoConfig,
    MaskedConfig,
    MeanConfig,
    ReinforceConfig,
    SapoConfig,
    TokenBudgetConfig,
    TruncatedConfig,
    TurnClipConfig,
)
from learners.training.optimizer_step import accumulate_gradients, grpo_sums, step_metrics
from tests.learners.batch.test_packing import samples_of
from tests.learners.tiny_parts import tiny_policy

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
SHARES = {"function": 0.25, "search": 0.75}


def sample(num_loss_tokens: int, *, group_id: int = 0, trajectory: int, gym: str = "function"):
    """A sample of that many loss tokens, after one token of context."""
    zeros, one = np.zeros(num_loss_tokens, np.float32), np.ones(1, np.float32)
    return TrainingSample(
        group_id=group_id,
        trajectory=trajectory,
        gym=gym,
        token_ids=np.zeros(1 + num_loss_tokens, np.int32),
        behavior_logprobs=zeros,
        policy_versions=zeros.astype(np.int32),
        turns=np.zeros(1, np.int32),
        turn_starts=np.ones(1, np.int64),
        turn_lengths=np.array([num_loss_tokens]),
        advantages=one,
        returns=np.nan * one,
    )


FORKED = [sample(2, trajectory=0), sample(2, trajectory=0), sample(6, trajectory=1)]
"""Ten loss tokens: a forked trajectory of four, and another of six."""


def weights(
    samples: list[TrainingSample],
    aggregation: str,
    *,
    tokens: int | None = None,
    shares: dict[str, float] | None = None,
) -> list[float]:
    config = config_of(aggregation, tokens=tokens)
    return sample_weights(samples, aggregation=config.aggregation, gym_shares=shares).tolist()


def config_of(aggregation: str, *, tokens: int | None) -> LearnerConfig:
    table = {"type": aggregation} | ({} if tokens is None else {"tokens": tokens})
    return LearnerConfig.model_validate({"aggregation": table})


def test_the_types_that_a_recipe_may_name_are_those_of_the_table():
    union = get_args(LearnerConfig.model_fields["aggregation"].annotation)
    names = {name for kind in union for name in get_args(kind.model_fields["type"].annotation)}
    assert names == set(AGGREGATIONS)


def test_weights_by_hand():
    """The loss divides by the step's 10 tokens, so that a weight w means w / 10."""
    assert weights(FORKED, "token_mean") == [1.0, 1.0, 1.0]
    assert weights(FORKED, "sequence_mean") == pytest.approx([10 / 8, 10 / 8, 10 / 12])
    assert weights(FORKED, "constant_length", tokens=20) == pytest.approx([10 / 40] * 3)
    assert weights(FORKED, "token_budget", tokens=16) == pytest.approx([10 / 16] * 3)


def test_each_gym_has_its_own_denominator():
    """Gym a: 4 tokens, share 1/4: 1/4 x 10/4. Gym b: 6 tokens, share 3/4: 3/4 x 10/6."""
    samples = [*FORKED[:2], sample(6, trajectory=1, gym="search")]
    assert weights(samples, "token_mean", shares=SHARES) == pytest.approx([0.625, 0.625, 1.25])
    assert weights(samples, "token_budget", tokens=16, shares=SHARES) == pytest.approx([10 / 16] * 3)
    with pytest.raises(ValueError, match="gym 'search' has no share"):
        weights(samples, "token_mean", shares={"function": 1.0})


SAMPLES = st.lists(
    st.builds(sample, st.integers(1, 9), trajectory=st.integers(0, 4), gym=st.sampled_from(list(SHARES))),
    min_size=1,
    max_size=12,
)


@given(SAMPLES)
def test_token_mean_is_exactly_one_and_means_spread_one_over_the_step(samples: list[TrainingSample]):
    num_tokens = sum(s.num_loss_tokens for s in samples)
    assert set(weights(samples, "token_mean")) == {1.0}
    for aggregation in ("token_mean", "sequence_mean"):
        for shares in (None, SHARES):
            each = weights(samples, aggregation, shares=shares)
            total = sum(w * s.num_loss_tokens for w, s in zip(each, samples, strict=True)) / num_tokens
            expected = 1.0 if shares is None else sum(shares[gym] for gym in {s.gym for s in samples})
            assert total == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(samples=SAMPLES)
def test_another_gym_changes_no_weight_of_a_gym_with_its_own_denominator(
    aggregation: str, samples: list[TrainingSample]
):
    """Weight over the step's tokens is what a token counts in the loss."""
    tokens = 7 if aggregation in ("constant_length", "token_budget") else None
    samples = [replace(s, group_id=list(SHARES).index(s.gym)) for s in samples]
    alone = [s for s in samples if s.gym == "function"]
    mixed = weights(samples, aggregation, tokens=tokens, shares=SHARES)
    mine = [w for w, s in zip(mixed, samples, strict=True) if s.gym == "function"]
    num_mixed, num_alone = (sum(s.num_loss_tokens for s in part) for part in (samples, alone))
    expected = weights(alone, aggregation, tokens=tokens, shares=SHARES)
    assert [w / num_mixed for w in mine] == pytest.approx([w / num_alone for w in expected], rel=1e-12)


@given(SAMPLES, st.integers(1, 60), st.integers(0, 3))
def test_a_budget_takes_whole_trajectories_and_ends_with_the_one_that_reaches_it(
    samples: list[TrainingSample], budget: int, seed: int
):
    chosen = within_budget(samples, budget=budget, gym_shares=None, seed=seed)
    keys = {(s.group_id, s.trajectory) for s in chosen}
    assert chosen == [s for s in samples if (s.group_id, s.trajectory) in keys]
    lengths = {k: sum(s.num_loss_tokens for s in chosen if (s.group_id, s.trajectory) == k) for k in keys}
    total = sum(lengths.values())
    assert total - max(lengths.values()) < budget
    assert total >= min(budget, sum(s.num_loss_tokens for s in samples))
    assert chosen == within_budget(samples, budget=budget, gym_shares=None, seed=seed)


def test_a_gym_keeps_the_same_trajectories_of_its_share_of_the_budget_with_and_without_other_gyms():
    alone = [sample(3, trajectory=i) for i in range(8)]
    others = [sample(5, group_id=1, trajectory=i, gym="search") for i in range(8)]
    chosen = within_budget([*alone, *others], budget=24, gym_shares=SHARES, seed=1)
    assert [s for s in chosen if s.gym == "function"] == within_budget(
        alone, budget=24, gym_shares=SHARES, seed=1
    )
    assert [sum(s.gym == gym for s in chosen) for gym in SHARES] == [2, 4]


def gradients(
    samples: list[TrainingSample], *, config: LearnerConfig, max_tokens: int = 10_000, num_ranks: int = 1
) -> dict[str, torch.Tensor]:
    """The step's gradient, packed into micro-batches of at most `max_tokens`; ranks one after the other."""
    policy = tiny_policy(entropies_have_gradient=config.entropy.coefficient > 0)
    samples, each = select_and_weigh(samples, config=config, gym_shares=SHARES, seed=0)
    num_tokens = sum(s.num_loss_tokens for s in samples)
    loss_fn = partial(grpo_sums, config=config, num_tokens=num_tokens, policy_version=0)
    for rank in range(num_ranks):
        batches = micro_batches(
            samples, weights=each, max_tokens=max_tokens, rank=rank, num_ranks=num_ranks, seed=3
        )
        accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


CONFIGS = {
    "gspo": LearnerConfig(
        loss=GspoConfig(clip_low=0.5, clip_high=0.5), aggregation=MeanConfig(type="sequence_mean")
    ),
    "turn": LearnerConfig(loss=TurnClipConfig(clip_low=0.5, clip_high=0.5)),
    "cispo": LearnerConfig(
        loss=CispoConfig(),
        importance=MaskedConfig(level="turn", low=0.0, high=3.0),
        aggregation=ConstantLengthConfig(tokens=40),
    ),
    "sapo": LearnerConfig(
        loss=SapoConfig(),
        entropy=EntropyConfig(coefficient=0.1),
        aggregation=TokenBudgetConfig(tokens=50),
    ),
    "reinforce": LearnerConfig(loss=ReinforceConfig(), importance=TruncatedConfig(level="sequence")),
}


def mixed_samples() -> list[TrainingSample]:
    """Two gyms. The behavior logprobs lie about the random policy's own, so that ratios lie about 1."""
    return [
        replace(
            s,
            gym="search" if s.group_id % 2 else "function",
            behavior_logprobs=np.float32(-3.5) + s.behavior_logprobs,
        )
        for s in samples_of(4)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_any_split_over_micro_batches_and_ranks_gives_the_gradient_of_one(name: str):
    samples = mixed_samples()
    longest = max(s.num_tokens for s in samples)
    whole = gradients(samples, config=CONFIGS[name])
    for split in (
        gradients(samples, config=CONFIGS[name], max_tokens=longest),
        gradients(samples, config=CONFIGS[name], max_tokens=2 * longest, num_ranks=3),
    ):
        for parameter, gradient in whole.items():
            assert torch.allclose(split[parameter], gradient, rtol=0, atol=1e-9), parameter
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-6


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_mixing_gyms_adds_their_gradients_where_each_has_its_own_denominator(aggregation: str):
    """The gradient of both gyms is that of one alone plus that of the other alone: 1e-9, in float64."""
    config = config_of(aggregation, tokens=60 if aggregation in ("constant_length", "token_budget") else None)
    samples = mixed_samples()
    both = gradients(samples, config=config)
    alone = [gradients([s for s in samples if s.gym == gym], config=config) for gym in SHARES]
    for parameter, gradient in both.items():
        assert torch.allclose(alone[0][parameter] + alone[1][parameter], gradient, rtol=0, atol=1e-9)


def test_without_per_gym_denominators_another_gym_changes_the_step():
    config, samples = LearnerConfig(per_gym_denominator=False), mixed_samples()
    both = gradients(samples, config=config)
    alone = [gradients([s for s in samples if s.gym == gym], config=config) for gym in SHARES]
    assert any(not torch.allclose(alone[0][p] + alone[1][p], both[p], rtol=0, atol=1e-6) for p in both)


def test_the_entropy_bonus_is_the_gradient_of_the_mean_entropy():
    """With advantages of zero only the bonus is left: against autograd through a plain softmax."""
    samples = [replace(s, advantages=np.zeros_like(s.advantages)) for s in samples_of(2)]
    config = LearnerConfig(entropy=EntropyConfig(coefficient=0.5), per_gym_denominator=False)
    found = gradients(samples, config=config, max_tokens=100)
    policy = tiny_policy()
    total = torch.zeros((), dtype=torch.float64)
    for one in samples:
        batch = pack([one])
        hidden = policy.model.base_model(
            input_ids=batch.token_ids[None],
            position_ids=batch.position_ids[None],
            sample_lengths=batch.lengths,
            use_cache=False,
        ).last_hidden_state[0, batch.predictors]
        probabilities = (hidden @ policy.head.T).softmax(-1)
        total = total - (probabilities * probabilities.log()).sum()
    (-0.5 * total / sum(s.num_loss_tokens for s in samples)).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, rtol=0, atol=1e-9), name


def test_a_masked_step_reports_the_fraction_left_out():
    """Every ratio is beyond [1, 1]: nothing is learned, and all of it is reported."""
    config = LearnerConfig(importance=MaskedConfig(low=1.0, high=1.0))
    policy, samples = tiny_policy(), samples_of(1)
    num_tokens = sum(s.num_loss_tokens for s in samples)
    loss_fn = partial(grpo_sums, config=config, num_tokens=num_tokens, policy_version=0)
    sums = accumulate_gradients(policy, [pack(samples)], loss_fn=loss_fn, device=CPU, num_ranks=1)
    metrics = step_metrics(
        sums, grad_norm=0.0, lr=0.1, num_tokens=9, num_loss_tokens=num_tokens, duration_s=1.0
    )
    assert metrics["learner/importance/left_out_fraction"] == 1.0
    assert metrics["learner/importance/weight"] == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())
