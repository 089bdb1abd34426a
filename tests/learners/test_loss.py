"""The losses against numbers worked out by hand."""

from math import log

import pytest
import torch

from learners.loss import PolicyLoss, ppo_clip_loss, sft_loss


def loss_of(
    ratios: list[float], advantages: list[float], *, num_tokens: int
) -> tuple[PolicyLoss, list[float]]:
    """The loss at these probability ratios, and its gradient by each policy logprob."""
    behavior = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    policy = (behavior + torch.tensor([log(r) for r in ratios], dtype=torch.float64)).requires_grad_()
    result = ppo_clip_loss(
        policy,
        behavior_logprobs=behavior,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        num_tokens=num_tokens,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=3.0,
    )
    (gradient,) = torch.autograd.grad(result.loss, policy)
    return result, gradient.tolist()


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
