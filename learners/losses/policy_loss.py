"""Policy losses (PPO clip, GSPO, turn clip, CISPO, SAPO, REINFORCE) and the SFT loss on selected tokens, as
pure functions of logprobs. No model, no batch, no Ray.

A policy loss gives every token an objective (to be maximised); `policy_loss` sums the objectives, each times
its token's weight, and divides by the token count of the whole step, so that gradients add up over
micro-batches and learners however the samples are packed. Every ratio is against the engine that sampled,
token for token.

Legend: L tokens in the loss. `segments` number the turn or sequence that each of them belongs to, from 0 up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from learners.loss_config import (
    CispoConfig,
    CustomLossConfig,
    GspoConfig,
    LossConfig,
    PpoConfig,
    ReinforceConfig,
    SapoConfig,
    TurnClipConfig,
)
from simulators.plug_ins import plug_in

MOST_LOG_RATIO = 20.0
"""Log ratios are clamped to this, either way: exp(20) is beyond every bound, and finite, so that a token that
is masked or clipped away has a gradient of 0 and not of 0 times infinity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTokens:
    """Inputs of a policy loss: the loss tokens of a micro-batch."""

    policy_logprobs: Float[Tensor, "L"]
    """Has the gradient."""
    behavior_logprobs: Float[Tensor, "L"]
    advantages: Float[Tensor, "L"]
    turns: Int64[Tensor, "L"]
    sequences: Int64[Tensor, "L"]

    @property
    def log_ratio(self) -> Float[Tensor, "L"]:
        """log(policy / behavior) of each token, within `MOST_LOG_RATIO`."""
        return _log_ratio(self.policy_logprobs, self.behavior_logprobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenObjective:
    """Objective of each token, before its weight."""

    values: Float[Tensor, "L"]
    """Has a gradient."""
    clipped: Bool[Tensor, "L"]
    """True if a bound changed the token's gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss:
    """A micro-batch's share of the loss, and sums over its tokens that add up to the step's statistics."""

    loss: Float[Tensor, ""]
    """Already divided by the step's token count; has a gradient."""
    num_clipped: Float[Tensor, ""]
    """Tokens whose gradient a bound changed: stopped in ppo, gspo and turn, capped in cispo."""
    ratio_sum: Float[Tensor, ""]
    """Sum of the tokens' own ratios, also if the loss uses those of turns or sequences."""
    kl_sum: Float[Tensor, ""]
    """Sum of `kl_k3` of KL(behavior || policy)."""


def policy_loss(
    tokens: LossTokens, *, weights: Float[Tensor, "L"], num_tokens: int, config: LossConfig
) -> PolicyLoss:
    """The loss of `config.type`: -sum(weight x objective) / num_tokens.

    `weights` are 1 for the mean over all tokens; `num_tokens` is the step's, over all learners.
    """
    is_custom = isinstance(config, CustomLossConfig)
    objective_of = plug_in(config.function) if is_custom else POLICY_LOSSES[config.type]
    objective: TokenObjective = objective_of(tokens, config)
    loss = -(weights.to(objective.values.dtype) * objective.values).sum() / num_tokens
    log_ratio, policy_logprobs = tokens.log_ratio.detach(), tokens.policy_logprobs.detach()
    return PolicyLoss(
        loss=loss,
        num_clipped=objective.clipped.sum().to(log_ratio.dtype),
        ratio_sum=log_ratio.exp().sum(),
        kl_sum=kl_k3(tokens.behavior_logprobs, policy_logprobs).sum(),
    )


def ppo_clip(tokens: LossTokens, config: PpoConfig) -> TokenObjective:
    """PPO's clipped surrogate (arXiv 1707.06347 eq. 7) with two bounds (clip-higher: DAPO, arXiv 2503.14476)
    and a dual clip (arXiv 1912.09729): if the advantage is negative, the ratio is at most `dual_clip`."""
    ratio, advantages = tokens.log_ratio.exp(), tokens.advantages
    objective = _clipped(ratio, advantages, config)
    bounded = objective.values.maximum(config.dual_clip * advantages)
    return TokenObjective(
        values=bounded.where(advantages < 0, objective.values),
        clipped=objective.clipped | ((advantages < 0) & (ratio > config.dual_clip)),
    )


def gspo(tokens: LossTokens, config: GspoConfig) -> TokenObjective:
    """GSPO-token (arXiv 2507.18071 eq. 13 and 14): all tokens of a sequence share the geometric mean of their
    ratios, so that the sequence is clipped as a whole.

    A sequence is one sample: the policy's tokens of a dialogue, up to a fork.
    """
    return _clipped(segment_ratio(tokens, tokens.sequences), tokens.advantages, config)


def turn_clip(tokens: LossTokens, config: TurnClipConfig) -> TokenObjective:
    """The ratio and clip of a whole turn: the turn is the action (Turn-PPO, arXiv 2512.17008), its ratio
    GSPO's length-normalised one (arXiv 2507.18071 eq. 7) over the turn's tokens."""
    return _clipped(segment_ratio(tokens, tokens.turns), tokens.advantages, config)


def cispo(tokens: LossTokens, config: CispoConfig) -> TokenObjective:
    """CISPO (MiniMax-M1, arXiv 2506.13585 eq. 4 and 5): sg[min(r, 1 + clip_high)] A log pi.

    The ratio is a weight and is bounded, not the update: no token loses its gradient. As in the paper's runs
    there is no lower bound.
    """
    ratio = tokens.log_ratio.detach().exp()
    highest = 1 + config.clip_high
    weights = ratio.clamp(max=highest)
    return TokenObjective(
        values=weights * tokens.advantages * tokens.policy_logprobs, clipped=ratio > highest
    )


def sapo(tokens: LossTokens, config: SapoConfig) -> TokenObjective:
    """SAPO (arXiv 2511.20347): a gate 4 / tau x sigmoid(tau (r - 1)) in place of the clip, with its own tau
    for A > 0 and for A <= 0.

    On policy the gradient is that of the policy gradient; away from it, it fades as 4 p (1 - p), with p the
    sigmoid, and never stops.
    """
    ratio = tokens.log_ratio.exp()
    gains = tokens.advantages > 0
    tau = ratio.new_full(ratio.shape, config.negative).masked_fill(gains, config.positive)
    gates = (tau * (ratio - 1)).sigmoid() * 4 / tau
    return TokenObjective(values=gates * tokens.advantages, clipped=gains.new_zeros(gains.shape))


def reinforce(tokens: LossTokens, config: ReinforceConfig) -> TokenObjective:
    """The policy gradient itself, A log pi (Williams 1992). Without importance weights it is right only on
    policy."""
    values = tokens.advantages * tokens.policy_logprobs
    return TokenObjective(values=values, clipped=torch.zeros_like(values, dtype=torch.bool))


def segment_ratio(tokens: LossTokens, segments: Int64[Tensor, "L"]) -> Float[Tensor, "L"]:
    """Each token's segment ratio s = (policy / behavior)^(1 / length) (GSPO eq. 7). Its value is the
    segment's, its gradient the token's own: sg[s] policy / sg[policy] (eq. 14)."""
    log_s = segment_mean(tokens.log_ratio.detach(), segments)
    return (log_s + tokens.policy_logprobs - tokens.policy_logprobs.detach()).exp()


def segment_sum(values: Float[Tensor, "L"], segments: Int64[Tensor, "L"]) -> Float[Tensor, "L"]:
    """At each token, the sum over its segment."""
    num_segments = int(segments.max()) + 1 if len(segments) else 0
    return values.new_zeros(num_segments).index_add(0, segments, values)[segments]


def segment_mean(values: Float[Tensor, "L"], segments: Int64[Tensor, "L"]) -> Float[Tensor, "L"]:
    """At each token, the mean over its segment."""
    return segment_sum(values, segments) / segment_sum(values.new_ones(len(values)), segments)


def kl_k1(sampled_logprobs: Float[Tensor, "L"], other_logprobs: Float[Tensor, "L"]) -> Float[Tensor, "L"]:
    """log(p / q) at tokens sampled from p: unbiased for KL(p || q), can be negative (Schulman 2020, as k2 and
    k3). As a reward it is an exact penalty; its gradient as a loss is zero in the mean."""
    return sampled_logprobs - other_logprobs


def kl_k2(sampled_logprobs: Float[Tensor, "L"], other_logprobs: Float[Tensor, "L"]) -> Float[Tensor, "L"]:
    """log(p / q)^2 / 2: never negative, slightly biased. On policy its gradient by p is that of KL(p || q),
    so it suits a term of the loss."""
    return (sampled_logprobs - other_logprobs).square() / 2


def kl_k3(sampled_logprobs: Float[Tensor, "L"], other_logprobs: Float[Tensor, "L"]) -> Float[Tensor, "L"]:
    """q / p - 1 - log(q / p): unbiased and never negative, GRPO's choice (arXiv 2402.03300 eq. 4)."""
    log_ratio = _log_ratio(other_logprobs, sampled_logprobs)
    return log_ratio.exp() - 1 - log_ratio


def sft_loss(policy_logprobs: Float[Tensor, "L"], *, num_tokens: int) -> Float[Tensor, ""]:
    """Cross-entropy of the demonstrated tokens: token-mean over the step's `num_tokens`."""
    return -policy_logprobs.sum() / num_tokens


def _clipped(
    ratio: Float[Tensor, "L"],
    advantages: Float[Tensor, "L"],
    config: PpoConfig | GspoConfig | TurnClipConfig,
) -> TokenObjective:
    """min(r A, clip(r) A)."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return TokenObjective(
        values=(ratio * advantages).minimum(ratio.clamp(low, high) * advantages),
        clipped=((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low)),
    )


def _log_ratio(over: Float[Tensor, "L"], under: Float[Tensor, "L"]) -> Float[Tensor, "L"]:
    return (over - under).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)


POLICY_LOSSES: dict[str, Callable[..., TokenObjective]] = {
    "ppo": ppo_clip,
    "gspo": gspo,
    "turn": turn_clip,
    "cispo": cispo,
    "sapo": sapo,
    "reinforce": reinforce,
}
"""Type of `learner.loss` to its objective: a function of `LossTokens` and the type's config."""
