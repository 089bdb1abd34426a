"""Importance weights against the engine's sampling distribution: (log_ratio, segments) -> weights, without a
gradient. Knows no loss.

Legend: L tokens in the loss. A segment is a token, a turn or a sequence; its ratio is the product of its
tokens' ratios, the true importance weight of all that was said in it.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from learners.config import LearnerConfig
from learners.losses.policy_loss import MOST_LOG_RATIO, POLICY_LOSSES, LossTokens, segment_sum


def product_ratio(log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"]) -> Float[Tensor, "L"]:
    """At each token, the ratio of its segment: exp of the summed log ratios."""
    return segment_sum(log_ratio.detach(), segments).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()


def truncated_weights(
    log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"], *, high: float
) -> Float[Tensor, "L"]:
    """min(r, high): truncated importance sampling (Ionides 2008; Espeholt et al., arXiv 1802.01561). A little
    bias for a bounded variance."""
    return product_ratio(log_ratio, segments).clamp(max=high)


def kept(
    log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"], *, low: float, high: float
) -> Float[Tensor, "L"]:
    """1 where low <= r <= high, else 0: the segment is left out as a whole."""
    ratio = product_ratio(log_ratio, segments)
    return ((ratio >= low) & (ratio <= high)).to(ratio.dtype)


def masked_weights(
    log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"], *, low: float, high: float
) -> Float[Tensor, "L"]:
    """r where low <= r <= high, else 0: IcePop's two-sided mask (Ring-1T, arXiv 2510.18855), there by the
    token."""
    return product_ratio(log_ratio, segments) * kept(log_ratio, segments, low=low, high=high)


def importance_weights(tokens: LossTokens, config: LearnerConfig) -> Float[Tensor, "L"]:
    """The weights that the configuration asks for.

    Only a loss without a ratio (`reinforce`) takes it from here. The others hold it already, and would
    count it twice: for them a mask leaves segments out and changes no other token.
    """
    log_ratio = tokens.log_ratio.detach()
    segments = {
        "token": torch.arange(len(log_ratio), device=log_ratio.device),
        "turn": tokens.turns,
        "sequence": tokens.sequences,
    }[config.importance_level]
    low, high = config.importance_low, config.importance_high
    if config.importance == "truncated":
        return truncated_weights(log_ratio, segments, high=high)
    if config.importance == "none":
        return torch.ones_like(log_ratio)
    weights = kept if POLICY_LOSSES[config.loss].holds_ratio else masked_weights
    return weights(log_ratio, segments, low=low, high=high)
