"""Policy losses against numbers computed by hand and against references written token by token."""

from math import exp, log
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.recipe import BadInput, validate
from cluster.config.run_config import RunConfig
from learners.config import LearnerConfig
from learners.loss_config import LossConfig, PpoConfig, SapoConfig
from learners.losses.policy_loss import (
    POLICY_LOSSES,
    LossTokens,
    PolicyLoss,
    kl_k1,
    kl_k2,
    kl_k3,
    policy_loss,
    sft_loss,
)
from tests.learners.tiny_parts import loss_config

CONFIG = PpoConfig(clip_low=0.2, clip_high=0.3, dual_clip=3.0)


def config_of(name: str) -> LossConfig:
    """Clips at 0.75 and 1.3."""
    return loss_config(name, clip_low=0.25, clip_high=0.3, dual_clip=3.0)


def tokens_of(
    ratios: list[float],
    advantages: list[float],
    *,
    turns: list[int] | None = None,
    sequences: list[int] | None = None,
) -> LossTokens:
    """Tokens at these probability ratios; one turn and one sequence unless told."""
    behavior = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    policy = (behavior + torch.tensor([log(r) for r in ratios], dtype=torch.float64)).requires_grad_()
    return LossTokens(
        policy_logprobs=policy,
        behavior_logprobs=behavior,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        turns=torch.tensor(turns or [0] * len(ratios), dtype=torch.int64),
        sequences=torch.tensor(sequences or [0] * len(ratios), dtype=torch.int64),
    )


def gradient_of(
    tokens: LossTokens,
    *,
    config: LossConfig,
    weights: list[float] | None = None,
    num_tokens: int = 1,
) -> tuple[PolicyLoss, list[float]]:
    """The loss, and its gradient by each policy logprob."""
    each = torch.tensor(weights or [1.0] * len(tokens.advantages), dtype=torch.float64)
    result = policy_loss(tokens, weights=each, num_tokens=num_tokens, config=config)
    (gradient,) = torch.autograd.grad(result.loss, tokens.policy_logprobs)
    return result, gradient.tolist()


def loss_of(
    ratios: list[float], advantages: list[float], *, num_tokens: int
) -> tuple[PolicyLoss, list[float]]:
    return gradient_of(tokens_of(ratios, advantages), config=CONFIG, num_tokens=num_tokens)


def test_on_policy_the_gradient_is_the_policy_gradient():
    """At ratio 1 the loss is -mean(A), and its gradient by each logprob is -A / num_tokens."""
    result, gradient = loss_of([1.0, 1.0], [2.0, -1.0], num_tokens=4)
    assert result.loss.item() == pytest.approx(-0.25)
    assert gradient == pytest.approx([-0.5, 0.25])
    assert result.num_clipped.item() == 0


def test_clip_stops_what_already_moved_far_enough():
    """A > 0 stops above 1.3 (counts 1.3 A); A < 0 stops below 0.8 (counts 0.8 A)."""
    result, gradient = loss_of([1.5, 0.5], [1.0, -1.0], num_tokens=1)
    assert result.loss.item() == pytest.approx(-(1.3 - 0.8))
    assert gradient == [0.0, 0.0]
    assert result.num_clipped.item() == 2


def test_clip_lets_a_mistake_be_undone():
    """Below 0.8 with A > 0, and above 1.3 with A < 0, the gradient is -r A."""
    result, gradient = loss_of([0.5, 2.0], [1.0, -1.0], num_tokens=1)
    assert result.loss.item() == pytest.approx(-(0.5 - 2.0))
    assert gradient == pytest.approx([-0.5, 2.0])
    assert result.num_clipped.item() == 0


def test_dual_clip_bounds_a_negative_advantage():
    """Ratio 10 with A = -2 counts 3 x -2 and gives no gradient; with A > 0 it is the ordinary clip that
    stops."""
    result, gradient = loss_of([10.0], [-2.0], num_tokens=2)
    assert result.loss.item() == pytest.approx(3.0)
    assert gradient == [0.0]
    assert result.num_clipped.item() == 1


def test_statistics_are_sums_over_tokens():
    """k3 at ratio r is r - 1 - log r."""
    result, _ = loss_of([1.0, 2.0], [1.0, 1.0], num_tokens=2)
    assert result.ratio_sum.item() == pytest.approx(3.0)
    assert result.kl_sum.item() == pytest.approx(1 - log(2))


def test_no_tokens_give_a_zero_that_still_has_a_gradient():
    result, gradient = loss_of([], [], num_tokens=5)
    assert result.loss.item() == 0.0
    assert gradient == []


def test_sft_loss_is_the_token_mean_of_the_whole_step():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = sft_loss(logprobs, num_tokens=4)
    loss.backward()
    assert loss.item() == 0.75
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.25, -0.25]


def test_the_types_that_a_recipe_may_name_are_those_of_the_table_and_custom():
    union = get_args(LearnerConfig.model_fields["loss"].annotation)
    types = {name for kind in union for name in get_args(kind.model_fields["type"].annotation)}
    assert types == {*POLICY_LOSSES, "custom"}


@pytest.mark.parametrize(
    ("name", "low", "high"), [("ppo", 0.2, 0.28), ("gspo", 3e-4, 4e-4), ("turn", 3e-3, 4e-3)]
)
def test_each_clipped_loss_has_default_clips_for_the_length_of_its_segments(
    name: str, low: float, high: float
):
    assert loss_config(name).model_dump(include={"clip_low", "clip_high"}) == {
        "clip_low": low,
        "clip_high": high,
    }


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("behavior", [-120.0, 100.0])
def test_an_overflowing_ratio_leaves_all_gradients_finite(name: str, advantage: float, behavior: float):
    """In float32, where exp(119) is infinite; under a weight of 0 there is no gradient at all."""
    policy = torch.tensor([-1.0, -1.0], requires_grad=True)
    tokens = LossTokens(
        policy_logprobs=policy,
        behavior_logprobs=torch.tensor([-1.0, behavior]),
        advantages=torch.full((2,), advantage),
        turns=torch.tensor([0, 1]),
        sequences=torch.tensor([0, 1]),
    )
    for weight in (1.0, 0.0):
        result = policy_loss(
            tokens, weights=torch.tensor([1.0, weight]), num_tokens=2, config=loss_config(name)
        )
        (gradient,) = torch.autograd.grad(result.loss, policy)
        assert gradient.isfinite().all() and result.kl_sum.isfinite()
        assert weight or gradient[1] == 0


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_every_loss_is_the_policy_gradient_on_policy(name: str):
    """At ratio 1 its gradient by each logprob is -weight x A / num_tokens, and no bound is reached."""
    tokens = tokens_of([1.0, 1.0, 1.0], [2.0, -1.0, 0.0], turns=[0, 0, 1])
    result, gradient = gradient_of(tokens, config=config_of(name), weights=[1.0, 3.0, 1.0], num_tokens=4)
    assert gradient == pytest.approx([-0.5, 0.75, 0.0])
    assert result.num_clipped.item() == 0


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_no_token_gives_every_loss_a_zero_with_a_gradient(name: str):
    result, gradient = gradient_of(tokens_of([], []), config=config_of(name), num_tokens=3)
    assert (result.loss.item(), gradient) == (0.0, [])


def test_gspo_takes_the_geometric_mean_of_a_sequence():
    """Ratios 4 and 1: s = 2. A < 0 counts in full, its gradient s |A| at both tokens; A > 0 is clipped to 1.3
    for both, though the second alone never moved."""
    result, gradient = gradient_of(tokens_of([4.0, 1.0], [-1.0, -1.0]), config=config_of("gspo"))
    assert result.loss.item() == pytest.approx(4.0)
    assert gradient == pytest.approx([2.0, 2.0])
    result, gradient = gradient_of(tokens_of([4.0, 1.0], [1.0, 1.0]), config=config_of("gspo"))
    assert result.loss.item() == pytest.approx(-2.6)
    assert gradient == [0.0, 0.0]
    assert result.num_clipped.item() == 2


def test_the_turn_ratio_of_a_turn_depends_on_its_own_tokens_only():
    """Turn 0 has s = 2 and is clipped; turn 1 has s = 1.2 and is not. As one sequence both would be."""
    tokens = tokens_of([4.0, 1.0, 1.2], [1.0, 1.0, 1.0], turns=[0, 0, 1])
    _, gradient = gradient_of(tokens, config=config_of("turn"))
    assert gradient == pytest.approx([0.0, 0.0, -1.2])
    _, gradient = gradient_of(tokens, config=config_of("gspo"))
    assert gradient == [0.0, 0.0, 0.0]


def test_cispo_bounds_the_weight_and_stops_no_token():
    """Ratio 5 weighs 1.3, ratio 0.1 weighs 0.1; the value is w A log pi."""
    result, gradient = gradient_of(tokens_of([5.0, 0.1], [1.0, -2.0]), config=config_of("cispo"))
    assert gradient == pytest.approx([-1.3, 0.2])
    assert result.loss.item() == pytest.approx(-(1.3 * (log(5) - 1) - 2 * 0.1 * (log(0.1) - 1)))
    assert result.num_clipped.item() == 1


def test_sapo_fades_and_more_so_where_the_advantage_is_negative():
    """At r = 2 and tau = 1 the gate is 4 sigmoid(1) = 2.9242, its gradient 4 p (1 - p) r = 1.5729."""
    config = SapoConfig(positive=1.0, negative=2.0)
    result, gradient = gradient_of(tokens_of([2.0], [1.0]), config=config)
    assert result.loss.item() == pytest.approx(-2.924234315)
    assert gradient == pytest.approx([-1.572895467])
    _, gradient = gradient_of(tokens_of([2.0], [-1.0]), config=config)
    assert gradient == pytest.approx([4 * 0.880797078 * 0.119202922 * 2])


def test_reinforce_has_the_same_gradient_at_every_ratio():
    _, gradient = gradient_of(tokens_of([5.0, 0.1], [1.0, -2.0]), config=config_of("reinforce"))
    assert gradient == [-1.0, 2.0]


def test_kl_estimators_by_hand():
    """p = 0.5, q = 0.25: k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2."""
    p, q = torch.tensor([log(0.5)]).double(), torch.tensor([log(0.25)]).double()
    assert kl_k1(p, q).item() == pytest.approx(0.693147181)
    assert kl_k2(p, q).item() == pytest.approx(0.240226507)
    assert kl_k3(p, q).item() == pytest.approx(0.193147181)


def test_k1_and_k3_are_unbiased_and_k2_has_the_gradient():
    """Sums over all four outcomes of p instead of draws."""
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(0)
    log_q = torch.tensor([0.1, 0.4, -0.6, 0.2], dtype=torch.float64).log_softmax(0)
    truth = (log_p.exp() * (log_p - log_q)).sum()
    for estimator in (kl_k1, kl_k3):
        assert (log_p.exp() * estimator(log_p, log_q)).sum().item() == pytest.approx(truth.item(), abs=1e-12)
    (expected,) = torch.autograd.grad(truth, logits, retain_graph=True)
    (found,) = torch.autograd.grad((log_p.detach().exp() * kl_k2(log_p, log_q)).sum(), logits)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def naive(name: str, ratios: list[float], advantages: list[float]) -> tuple[float, list[float]]:
    """One turn that is the whole sequence: (sum of objectives, their gradient by each policy logprob)."""
    mean_ratio = exp(sum(log(r) for r in ratios) / len(ratios))
    total, gradient = 0.0, []
    for ratio, advantage in zip(ratios, advantages, strict=True):
        if name in ("gspo", "turn"):
            ratio = mean_ratio
        log_policy = log(ratio) - 1.0
        if name == "reinforce":
            value, slope = advantage * log_policy, advantage
        elif name == "cispo":
            value, slope = min(ratio, 1.3) * advantage * log_policy, min(ratio, 1.3) * advantage
        elif name == "sapo":
            tau = 1.0 if advantage > 0 else 1.05
            gate = 1 / (1 + exp(-tau * (ratio - 1)))
            value, slope = 4 / tau * gate * advantage, 4 * gate * (1 - gate) * ratio * advantage
        else:
            bound = min(max(ratio, 0.75), 1.3)
            value, slope = ratio * advantage, ratio * advantage
            if bound * advantage < value:
                value, slope = bound * advantage, 0.0
            if name == "ppo" and advantage < 0 and 3 * advantage > value:
                value, slope = 3 * advantage, 0.0
        total += value
        gradient.append(slope)
    return total, gradient


RATIOS = st.floats(-2, 2).map(lambda x: exp(x))
SEQUENCE = st.lists(st.tuples(RATIOS, st.floats(-3, 3)), min_size=1, max_size=6)


@pytest.mark.medium
@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(sequences=st.lists(SEQUENCE, min_size=1, max_size=4))
def test_every_loss_is_its_reference_written_token_by_token(
    name: str, sequences: list[list[tuple[float, float]]]
):
    """Ragged sequences in one row, each of one turn: 1e-9 on the value and on each token's gradient."""
    ratios = [r for sequence in sequences for r, _ in sequence]
    advantages = [a for sequence in sequences for _, a in sequence]
    numbers = [i for i, sequence in enumerate(sequences) for _ in sequence]
    tokens = tokens_of(ratios, advantages, turns=numbers, sequences=numbers)
    result, gradient = gradient_of(tokens, config=config_of(name), num_tokens=7)
    expected = [naive(name, [r for r, _ in sequence], [a for _, a in sequence]) for sequence in sequences]
    assert result.loss.item() == pytest.approx(-sum(value for value, _ in expected) / 7, abs=1e-9)
    slopes = [-slope / 7 for _, gradients in expected for slope in gradients]
    assert gradient == pytest.approx(slopes, abs=1e-9)


@given(SEQUENCE, st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3))
def test_gspo_by_tokens_has_the_gradient_of_gspo_by_the_sequence(
    sequence: list[tuple[float, float]], advantage: float
):
    """Where all of a sequence has one advantage, the token form (eq. 13) in the mean over its tokens is
    eq. 5."""
    ratios = [r for r, _ in sequence]
    tokens = tokens_of(ratios, [advantage] * len(ratios))
    _, gradient = gradient_of(tokens, config=config_of("gspo"), num_tokens=len(ratios))
    ratio = (tokens.policy_logprobs - tokens.behavior_logprobs).mean().exp()
    whole = torch.minimum(ratio * advantage, ratio.clamp(0.75, 1.3) * advantage)
    (expected,) = torch.autograd.grad(-whole, tokens.policy_logprobs)
    assert np.allclose(gradient, expected.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"loss": "gspoo"}, "learner.loss='gspoo': unknown: did you mean gspo? Known are ppo, gspo, turn"),
        (
            {"advantage": "rlooo"},
            "learner.advantage='rlooo': unknown: did you mean rloo? Known are grpo, dr_grpo",
        ),
        ({"importance": "truncated"}, "importance=truncated: loss=ppo has the ratio already"),
        ({"loss": "cispo", "importance": "truncated"}, "loss=cispo has the ratio already"),
        ({"loss": {"type": "gspo", "dual_clip": 2}}, "learner.loss.dual_clip: type=gspo has no such key"),
        ({"loss": {"positive": 2}}, "type=ppo has no such key: its keys are: clip_low, clip_high, dual_clip"),
        ({"loss": {"clip_low": 2}}, "learner.loss.clip_low=2: must be less than 1: the default is 0.2"),
        ({"aggregation": "token_budget"}, "learner.aggregation.tokens: missing"),
        ({"aggregation": {"tokens": 5}}, "learner.aggregation.tokens: type=token_mean has no such key"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(settings: dict[str, Any], rule: str):
    with pytest.raises(BadInput) as caught:
        validate({"learner": settings}, model=RunConfig)
    assert rule in str(caught.value) and "\n" not in str(caught.value)
