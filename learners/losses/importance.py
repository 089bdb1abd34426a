"""Importance weights against the engine's sampling distribution: (log_ratio, segments) -> weights, without a
gradient.

Legend: L tokens in the loss. A segment is a token, a turn or a sequence; its ratio is the product of its
tokens' ratios, the exact importance weight of the whole segment.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from learners.loss_config import ImportanceConfig
from learners.losses.policy_loss import MOST_LOG_RATIO, LossTokens, segment_sum


def product_ratio(log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"]) -> Float[Tensor, "L"]:
    """At each token, the ratio of its segment: exp of the summed log ratios."""
    return segment_sum(log_ratio.detach(), segments).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()


def truncated_weights(
    log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"], *, high: float
) -> Float[Tensor, "L"]:
    """min(r, high): truncated importance sampling (Ionides 2008; Espeholt et al., arXiv 1802.01561). A little
    bias for a bounded variance."""
    return product_ratio(log_ratio, segments).clamp(max=high)


def inside_mask(
    log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"], *, low: float, high: float
) -> Float[Tensor, "L"]:
    """1 if low <= r <= high, else 0: the segment is left out as a whole."""
    ratio = product_ratio(log_ratio, segments)
    return ((ratio >= low) & (ratio <= high)).to(ratio.dtype)


def masked_weights(
    log_ratio: Float[Tensor, "L"], segments: Int64[Tensor, "L"], *, low: float, high: float
) -> Float[Tensor, "L"]:
    """r if low <= r <= high, else 0: IcePop's two-sided mask (Ring-1T, arXiv 2510.18855), there per token."""
    return product_ratio(log_ratio, segments) * inside_mask(log_ratio, segments, low=low, high=high)


def importance_weights(
    tokens: LossTokens, config: ImportanceConfig, *, has_ratio: bool
) -> Float[Tensor, "L"]:
    """The configured weights.

    `has_ratio` says that the loss itself contains the ratio and would count it twice: then a mask leaves
    segments out and changes no other token. Only `reinforce` has none.
    """
    log_ratio = tokens.log_ratio.detach()
    if config.type == "none":
        return torch.ones_like(log_ratio)
    segments = {
        "token": torch.arange(len(log_ratio), device=log_ratio.device),
        "turn": tokens.turns,
        "sequence": tokens.sequences,
    }[config.level]
    if config.type == "truncated":
        return truncated_weights(log_ratio, segments, high=config.high)
    weights = inside_mask if has_ratio else masked_weights
    return weights(log_ratio, segments, low=config.low, high=config.high)
