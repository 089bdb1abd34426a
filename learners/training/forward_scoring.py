"""Forward-only scoring passes of the policy over samples, shared out over the ranks.

Knows no reward and no table. Every rank calls with the same samples and gets all numbers, the same on any
number of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from learners.batch.packing import MicroBatch, pack, plan
from learners.batch.samples import TrainingSample
from learners.model.policy import Policy
from learners.training.optimizer_step import to_device

Reading = Callable[[Policy, MicroBatch], Float[Tensor, "K"]]
"""One number for each turn of the row that has a token in the loss."""
Scores = list[Float64[np.ndarray, "K"]]  # [num_samples]


def turn_values(policy: Policy, batch: MicroBatch) -> Float[Tensor, "K"]:
    """What the critic expects before each turn. Makes no logits."""
    none = batch.predictors[:0]
    return policy(replace(batch, predictors=none, targets=none)).values


def turn_logprobs(policy: Policy, batch: MicroBatch) -> Float[Tensor, "K"]:
    """The mean logprob of each turn's tokens in the loss."""
    logprobs = policy(batch).logprobs
    zeros = logprobs.new_zeros(len(batch.states))
    num_tokens = zeros.index_add(0, batch.turns, torch.ones_like(logprobs))
    return zeros.index_add(0, batch.turns, logprobs) / num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardScorer:
    """A policy, and how this rank takes part in a pass over samples."""

    policy: Policy
    device: torch.device
    max_tokens: int
    """Most tokens of one forward pass: no sample may be longer."""
    rank: int
    num_ranks: int
    seed: int
    """Fixes the packing, alike on every rank."""

    @torch.no_grad()
    def __call__(self, samples: Sequence[TrainingSample], *, read: Reading) -> Scores:
        """Each sample's numbers, in the order of its `turns`. Collective."""
        if not samples:
            return []
        ends = np.cumsum([len(sample.turns) for sample in samples])
        scores = torch.zeros(int(ends[-1]), dtype=torch.float64, device=self.device)
        ranks = plan(
            [sample.num_tokens for sample in samples],
            max_tokens=self.max_tokens,
            num_ranks=self.num_ranks,
            seed=self.seed,
        )
        places = np.split(np.arange(ends[-1]), ends[:-1])
        for indices in ranks[self.rank]:
            batch = to_device(pack([samples[index] for index in indices]), self.device)
            found = read(self.policy, batch).double()
            if indices:  # a rank without work has forwarded one token that counts for nothing
                scores[torch.from_numpy(np.concatenate([places[index] for index in indices]))] = found
        if self.num_ranks > 1:
            dist.all_reduce(scores)
        if isinstance(self.policy, FSDPModule):
            self.policy.reshard()  # no backward pass comes that would: the next gather must see new weights
        return np.split(scores.cpu().numpy(), ends[:-1])


TurnKey = tuple[int, int, int]
"""(group_id, trajectory, turn)."""


def by_turn(samples: Sequence[TrainingSample], scores: Scores) -> dict[TurnKey, float]:
    """Each turn's number, whatever number of samples its trajectory gives."""
    return {
        (sample.group_id, sample.trajectory, turn): score
        for sample, found in zip(samples, scores, strict=True)
        for turn, score in zip(sample.turns.tolist(), found.tolist(), strict=True)
    }
