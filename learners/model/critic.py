"""The critic: a small value head on the policy's hidden state that predicts the return before each turn. Its
gradient never reaches the policy.

Used if a gym's advantage is `turn_gae` (Turn-PPO, arXiv 2512.17008). No tables, no Ray.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH = 256
"""Units of the hidden layer; at most as many as the policy's hidden state has."""


class Critic(nn.Module):
    """Value of a state: layer norm, one hidden layer, one number. The last layer starts at zero, so that an
    untrained critic predicts 0 and advantages are plain returns.

    Weights are float32 for any dtype of the policy. The same seed gives the same critic on every rank.
    """

    def __init__(self, hidden_size: int, *, seed: int):
        super().__init__()
        width = min(WIDTH, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(hidden_size, width)
        self.outer = nn.Linear(width, 1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.inner.weight.normal_(0.0, hidden_size**-0.5, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, hidden: Float[Tensor, "K hidden_size"]) -> Float[Tensor, "K"]:
        """No gradient reaches `hidden`."""
        with torch.autocast(hidden.device.type, enabled=False):
            states = self.norm(hidden.detach().to(self.norm.weight.dtype))
            # The sum of one number: an index would be a view, which FSDP2 warns of.
            return self.outer(torch.tanh(self.inner(states))).sum(-1)


def critic_loss(
    values: Float[Tensor, "K"], returns: Float[Tensor, "K"], *, weights: Float[Tensor, "K"]
) -> Float[Tensor, ""]:
    """A micro-batch's part of the step's weighted squared error, sum of weight x (V - return)^2 (PPO, arXiv
    1707.06347 eq. 9, without a clip: each step uses its turns once).

    A turn without a return is ignored. If no turn has one, the gradient is zero, not missing: all ranks run
    the same collectives, and every checkpoint has the complete optimizer state.
    """
    known = returns.isfinite()
    errors = values[known] - returns[known].to(values.dtype)
    return (weights[known].to(values.dtype) * errors.square()).sum()


def explained_variance(
    values: Float[np.ndarray, "num_turns"], returns: Float[np.ndarray, "num_turns"]
) -> float | None:
    """1 - Var(return - V) / Var(return): 1 for an exact critic, 0 for one that predicts the mean. None if all
    returns are equal."""
    variance = float(np.var(returns)) if len(returns) else 0.0
    return 1.0 - float(np.var(returns - values)) / variance if variance > 0 else None
