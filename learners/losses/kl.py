"""KL terms to the reference model (k1, k2, k3) as pure functions of logprobs.

All three estimate KL(policy || reference) at the sampled tokens. `k2` and `k3` are added to the loss. `k1` is
subtracted from the advantages: as a loss its gradient has mean zero, as a reward it is the exact penalty. On
policy the gradient of `k1` so used and that of `k2` are the same, token for token: both are (policy -
reference logprob) x grad policy logprob, whose mean is the gradient of the KL.
"""

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from learners.loss_config import KlConfig
from learners.losses.policy_loss import LossTokens, kl_k1, kl_k2, kl_k3

KlFn = Callable[[Float[Tensor, "L"], Float[Tensor, "L"]], Float[Tensor, "L"]]
"""(policy logprobs, reference logprobs) -> each token's estimate, with a gradient by the policy."""


def with_kl_in_advantages(
    tokens: LossTokens, reference_logprobs: Float[Tensor, "L"], config: KlConfig
) -> LossTokens:
    """The tokens with advantages A - coefficient x sg[k1] if the type is `k1`; else unchanged."""
    if config.type != "k1" or not config.coefficient:
        return tokens
    penalty = config.coefficient * kl_k1(tokens.policy_logprobs.detach(), reference_logprobs)
    return replace(tokens, advantages=tokens.advantages - penalty)


def with_kl_in_loss(
    loss: Float[Tensor, ""],
    tokens: LossTokens,
    reference_logprobs: Float[Tensor, "L"],
    *,
    weights: Float[Tensor, "L"],
    num_tokens: int,
    config: KlConfig,
) -> Float[Tensor, ""]:
    """loss + coefficient x sum(weight x estimate) / num_tokens, with the weights and denominator of the
    policy loss; the loss unchanged if the type is `k1` or the coefficient is 0."""
    if config.type == "none" or config.type == "k1" or not config.coefficient:
        return loss
    estimates = LOSS_KLS[config.type](tokens.policy_logprobs, reference_logprobs)
    return loss + config.coefficient * (weights.to(estimates.dtype) * estimates).sum() / num_tokens


LOSS_KLS: dict[str, KlFn] = {"k2": kl_k2, "k3": kl_k3}
