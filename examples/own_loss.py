"""A policy loss of your own: TOPR (arXiv 2503.14286, eq. 9), at token level. A recipe names its function:

[learner]
loss = { type = "custom", function = "examples.own_loss:topr", options = { most = 1.0 } }
"""

import torch

from learners.loss_config import CustomLossConfig
from learners.losses.policy_loss import LossTokens, TokenObjective


def topr(tokens: LossTokens, config: CustomLossConfig) -> TokenObjective:
    """Tapered off-policy REINFORCE: good actions are reinforced at full weight, bad ones with the weight
    min(policy / behavior, most), so that what the policy no longer does is not pushed down further.

    All tensors have the shape [L], one entry for each loss token; the objective is maximised."""
    ratio = tokens.log_ratio.detach().exp()
    is_bad = tokens.advantages < 0
    weights = torch.where(is_bad, ratio.clamp(max=config.options["most"]), torch.ones_like(ratio))
    return TokenObjective(
        values=weights * tokens.advantages * tokens.policy_logprobs,
        clipped=is_bad & (ratio > config.options["most"]),
    )
