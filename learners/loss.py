"""The losses, on selected tokens: pure functions of logprobs. Knows no model, no batch, no Ray.

A loss is a sum over this micro-batch's tokens divided by the token count of the whole step, so that gradients
add up over micro-batches and learners to the token-mean, however the samples are packed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss:
    """A micro-batch's share of the loss, and sums over its tokens that add up to the step's statistics."""

    loss: Float[Tensor, ""]
    """Already divided by the step's token count; has a gradient."""
    num_clipped: Float[Tensor, ""]
    """Tokens whose gradient the clip stopped."""
    ratio_sum: Float[Tensor, ""]
    kl_sum: Float[Tensor, ""]
    """Sum of the k3 estimate of KL(behavior || policy): r - 1 - log r, never negative (Schulman 2020)."""


def ppo_clip_loss(
    policy_logprobs: Float[Tensor, "tokens"],
    *,
    behavior_logprobs: Float[Tensor, "tokens"],
    advantages: Float[Tensor, "tokens"],
    num_tokens: int,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> PolicyLoss:
    """PPO's clipped surrogate (arXiv 1707.06347 eq. 7) with two bounds (DAPO, arXiv 2503.14476) and a dual
    clip (arXiv 1912.09729): where the advantage is negative, a token's ratio counts no more than `dual_clip`.

    The ratio is against the engine that sampled, token for token. `num_tokens` is the step's, over all
    learners.
    """
    log_ratio = policy_logprobs - behavior_logprobs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    pessimistic = torch.minimum(ratio * advantages, clipped * advantages)
    surrogate = torch.where(advantages < 0, torch.maximum(pessimistic, dual_clip * advantages), pessimistic)
    loss = -surrogate.sum() / num_tokens
    with torch.no_grad():
        stopped = (
            ((advantages > 0) & (ratio > 1 + clip_high))
            | ((advantages < 0) & (ratio < 1 - clip_low))
            | ((advantages < 0) & (ratio > dual_clip))
        )
        return PolicyLoss(
            loss=loss,
            num_clipped=stopped.sum().to(ratio.dtype),
            ratio_sum=ratio.sum(),
            kl_sum=(ratio - 1 - log_ratio).sum(),
        )


def sft_loss(policy_logprobs: Float[Tensor, "tokens"], *, num_tokens: int) -> Float[Tensor, ""]:
    """Cross-entropy of the demonstrated tokens: token-mean over the step's `num_tokens`."""
    return -policy_logprobs.sum() / num_tokens
