"""The KL to the reference, on distributions small enough to sum over every token."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from learners.config import LearnerConfig
from learners.loss_config import PpoConfig, ReferenceKlConfig
from learners.losses.kl import with_kl_in_advantages, with_kl_in_loss
from learners.losses.policy_loss import POLICY_LOSSES, LossTokens, kl_k1, kl_k2, kl_k3, policy_loss
from tests.learners.tiny_parts import loss_config


def tokens_of(
    policy: Tensor, *, behavior: Tensor | None = None, advantages: Tensor | None = None
) -> LossTokens:
    places = torch.arange(len(policy))
    return LossTokens(
        policy_logprobs=policy,
        behavior_logprobs=policy.detach() if behavior is None else behavior,
        advantages=torch.zeros_like(policy.detach()) if advantages is None else advantages,
        turns=places // 2,
        sequences=places // 4,
    )


def distributions(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of the policy, with a gradient, and the reference's logprobs; seven tokens, float64."""
    torch.manual_seed(seed)
    return torch.randn(7, dtype=torch.float64, requires_grad=True), torch.randn(7).double().log_softmax(0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two whole distributions, from their logprobs."""
    return (p.exp() * (p - q)).sum()


def gradient(value: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(value, by, retain_graph=True)[0]


def test_each_estimate_and_its_term_by_hand():
    """Policy 1/2 and 1/4, reference 1/4 and 1/2: k1 = +-log 2, k2 = log(2)^2 / 2, k3 = 1/2 - 1 + log 2 and
    2 - 1 - log 2."""
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    assert kl_k1(policy, reference).tolist() == pytest.approx([0.693147, -0.693147], abs=1e-6)
    assert kl_k2(policy, reference).tolist() == pytest.approx([0.240227, 0.240227], abs=1e-6)
    assert kl_k3(policy, reference).tolist() == pytest.approx([0.193147, 0.306853], abs=1e-6)

    def term(name: Any) -> float:
        return with_kl_in_loss(
            torch.tensor(1.0), tokens_of(policy), reference, weights=torch.tensor([1.0, 2.0]), num_tokens=4,
            config=ReferenceKlConfig(type=name, coefficient=0.1),
        ).item()  # fmt: skip

    assert term("k2") == pytest.approx(1 + 0.1 * (0.240227 + 2 * 0.240227) / 4, abs=1e-6)
    assert term("k3") == pytest.approx(1 + 0.1 * (0.193147 + 2 * 0.306853) / 4, abs=1e-6)
    assert term("k1") == 1.0
    config = ReferenceKlConfig(type="k1", coefficient=0.1)
    tokens = tokens_of(policy, advantages=torch.tensor([1.0, -1.0]))
    advantages = with_kl_in_advantages(tokens, reference, config).advantages
    assert advantages.tolist() == pytest.approx([1 - 0.0693147, -1 + 0.0693147], abs=1e-6)


@pytest.mark.parametrize("name", ["none", "k1", "k2", "k3"])
def test_without_a_coefficient_nothing_is_added(name: Any):
    config, loss = LearnerConfig.model_validate({"kl": name}).kl, torch.tensor(1.0)
    policy = torch.tensor([-1.0, -2.0])
    tokens = tokens_of(policy)
    assert with_kl_in_advantages(tokens, policy - 1, config) is tokens
    assert (
        with_kl_in_loss(loss, tokens, policy - 1, weights=torch.ones(2), num_tokens=2, config=config) is loss
    )


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int):
    """Summed over all tokens with the policy's own probabilities."""
    logits, q = distributions(seed)
    p = logits.detach().log_softmax(0)
    exact = kl(p, q).item()
    for estimate in (kl_k1, kl_k3):
        assert (p.exp() * estimate(p, q)).sum().item() == pytest.approx(exact, abs=1e-12)
    assert abs((p.exp() * kl_k2(p, q)).sum().item() - exact) > 1e-3
    assert bool((kl_k2(p, q) >= 0).all()) and bool((kl_k3(p, q) >= 0).all()) and bool((kl_k1(p, q) < 0).any())


@pytest.mark.parametrize("seed", range(5))
def test_expected_gradients_on_policy(seed: int):
    """k1 as a loss: nothing. k1 in the advantages and k2 in the loss: the gradient of KL(policy ||
    reference). k3 in the loss: that of KL(reference || policy)."""
    logits, q = distributions(seed)
    p = logits.log_softmax(0)
    probabilities = p.detach().exp()
    wanted, reverse = gradient(kl(p, q), logits), gradient(kl(q, p), logits)
    assert gradient((probabilities * kl_k1(p, q)).sum(), logits).abs().max() < 1e-12
    config = ReferenceKlConfig(type="k1", coefficient=1.0)
    tokens = with_kl_in_advantages(tokens_of(p), q, config)
    as_reward = policy_loss(tokens, weights=probabilities, num_tokens=1, config=PpoConfig()).loss
    assert torch.allclose(gradient(as_reward, logits), wanted, atol=1e-12)
    terms: list[tuple[Any, Tensor]] = [("k2", wanted), ("k3", reverse)]
    for name, expected in terms:
        config = ReferenceKlConfig(type=name, coefficient=1.0)
        zero = torch.zeros((), dtype=torch.float64)
        term = with_kl_in_loss(zero, tokens_of(p), q, weights=probabilities, num_tokens=1, config=config)
        assert torch.allclose(gradient(term, logits), expected, atol=1e-12)
    assert not torch.allclose(wanted, reverse, atol=1e-3)


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_on_policy_k1_in_the_advantages_and_k2_in_the_loss_have_the_same_gradient_at_every_token(loss: Any):
    """Under each policy loss, with weights, at sampled tokens: not in the mean only."""
    torch.manual_seed(1)
    policy = (-2 * torch.rand(8, dtype=torch.float64)).requires_grad_()
    reference, advantages = -2 * torch.rand(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    weights = torch.rand(8, dtype=torch.float64)
    gradients = []
    for config in (
        ReferenceKlConfig(type="k1", coefficient=0.3),
        ReferenceKlConfig(type="k2", coefficient=0.3),
    ):
        tokens = with_kl_in_advantages(tokens_of(policy, advantages=advantages), reference, config)
        narrow = loss_config(loss, clip_low=0.01, clip_high=0.01, negative=1.0)
        value = policy_loss(tokens, weights=weights, num_tokens=5, config=narrow).loss
        value = with_kl_in_loss(value, tokens, reference, weights=weights, num_tokens=5, config=config)
        gradients.append(gradient(value, policy))
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_the_term_in_the_loss_has_the_gradient_of_finite_differences(name: Any):
    torch.manual_seed(2)
    reference, weights = -torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    config = ReferenceKlConfig(type=name, coefficient=0.7)

    def term(policy: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.float64)
        return with_kl_in_loss(
            zero, tokens_of(policy), reference, weights=weights, num_tokens=9, config=config
        )

    assert gradcheck(term, -torch.rand(6, dtype=torch.float64).requires_grad_())


def test_k1_in_the_advantages_has_no_gradient_of_its_own():
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    config = ReferenceKlConfig(type="k1", coefficient=0.5)
    assert not with_kl_in_advantages(tokens_of(policy), policy.detach() - 1, config).advantages.requires_grad


def test_off_policy_the_policy_loss_weighs_k1_by_its_ratio():
    """E under the behavior of r x k1 x grad log policy is the gradient of the KL of the policy as it is
    now."""
    logits, q = distributions(3)
    p = logits.log_softmax(0)
    behavior = (p.detach() + 0.05 * torch.randn(7, dtype=torch.float64)).log_softmax(0)
    tokens = replace(tokens_of(p), behavior_logprobs=behavior)
    tokens = with_kl_in_advantages(tokens, q, ReferenceKlConfig(type="k1", coefficient=1.0))
    wide = PpoConfig(clip_low=0.99, clip_high=100.0, dual_clip=1e6)
    value = policy_loss(tokens, weights=behavior.exp(), num_tokens=1, config=wide).loss
    assert torch.allclose(gradient(value, logits), gradient(kl(p, q), logits), atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"coefficient": 0.1}, {"reference": "some/model"}, "k4", {"type": "k2", "coefficient": -1}],
)
def test_keys_without_their_kl_and_unknown_kls_are_refused(settings: Any):
    with pytest.raises(ValueError, match="kl"):
        LearnerConfig.model_validate({"kl": settings})
