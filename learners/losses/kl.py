"""KL terms to the reference model (k1, k2, k3) as pure functions of logprobs. Knows no model.

Three ways to hold the policy near the reference, all estimates of KL(policy || reference) at the sampled
tokens. `k2` and `k3` are added to the loss. `k1` is taken from the advantages: as a loss its gradient has
mean zero, as a reward it is the exact penalty. On policy the gradient of `k1` so used and that of `k2` are
the same, token for token: both are (policy - reference logprob) x grad policy logprob, whose mean is the
gradient of the KL.
"""

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from learners.config import LearnerConfig
from learners.losses.policy_loss import LossTokens, kl_k1, kl_k2, kl_k3

KlFn = Callable[[Float[Tensor, "L"], Float[Tensor, "L"]], Float[Tensor, "L"]]
"""(policy logprobs, reference logprobs) -> each token's estimate, with a gradient by the policy."""


def with_kl_in_advantages(
    tokens: LossTokens, reference_logprobs: Float[Tensor, "L"], config: LearnerConfig
) -> LossTokens:
    """A - kl_coefficient x sg[k1] under `kl=k1`; the tokens as they are under any other."""
    if not config.takes_kl_from_advantages:
        return tokens
    penalty = config.kl_coefficient * kl_k1(tokens.policy_logprobs.detach(), reference_logprobs)
    return replace(tokens, advantages=tokens.advantages - penalty)


def with_kl_in_loss(
    loss: Float[Tensor, ""],
    tokens: LossTokens,
    reference_logprobs: Float[Tensor, "L"],
    *,
    weights: Float[Tensor, "L"],
    num_tokens: int,
    config: LearnerConfig,
) -> Float[Tensor, ""]:
    """loss + kl_coefficient x sum(weight x estimate) / num_tokens, weights and denominator being the policy
    loss's own; the loss as it is under `kl=k1`, and where the coefficient is 0."""
    if config.kl not in LOSS_KLS or not config.kl_coefficient:
        return loss
    estimates = LOSS_KLS[config.kl](tokens.policy_logprobs, reference_logprobs)
    return loss + config.kl_coefficient * (weights.to(estimates.dtype) * estimates).sum() / num_tokens


LOSS_KLS: dict[str, KlFn] = {"k2": kl_k2, "k3": kl_k3}
