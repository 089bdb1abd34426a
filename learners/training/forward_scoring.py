"""Forward-only scoring passes: one number per turn of given samples, computed by all ranks together.

No rewards, no tables. Every rank calls with the same samples and gets all numbers, the same on any number of
ranks.
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

TurnKey = tuple[int, int, int]
"""(group_id, trajectory, turn)."""
TurnScoreFn = Callable[[Policy, MicroBatch], Float[Tensor, "K"]]
"""One number for each turn of the row that has a token in the loss."""
Scores = list[Float64[np.ndarray, "K"]]  # [num_samples]


def turn_values(policy: Policy, batch: MicroBatch) -> Float[Tensor, "K"]:
    """The critic's value before each turn. Computes no logits."""
    none = batch.predictors[:0]
    return policy(replace(batch, predictors=none, targets=none)).values


def turn_logprobs(policy: Policy, batch: MicroBatch) -> Float[Tensor, "K"]:
    """The mean logprob of each turn's tokens in the loss."""
    return turn_means(policy(batch).logprobs, batch)


def turn_means(values: Float[Tensor, "L"], batch: MicroBatch) -> Float[Tensor, "K"]:
    """The mean over each turn's tokens."""
    zeros = values.new_zeros(len(batch.states))
    num_tokens = zeros.index_add(0, batch.turns, torch.ones_like(values))
    return zeros.index_add(0, batch.turns, values) / num_tokens


def gather_scores(
    samples: Sequence[TrainingSample],
    *,
    batches: Sequence[Sequence[int]],
    found: Sequence[Float64[Tensor, "K"]],
    num_ranks: int,
    device: torch.device,
) -> Scores:
    """Each sample's numbers from those of this rank's `batches` of sample indices and all other ranks'.
    Collective."""
    ends = np.cumsum([len(sample.turns) for sample in samples])
    scores = torch.zeros(int(ends[-1]), dtype=torch.float64, device=device)
    positions = np.split(np.arange(ends[-1]), ends[:-1])
    for indices, numbers in zip(batches, found, strict=True):
        if indices:  # an empty micro-batch consists of one token that counts for nothing
            scores[torch.from_numpy(np.concatenate([positions[index] for index in indices]))] = numbers
    if num_ranks > 1:
        dist.all_reduce(scores)
    return np.split(scores.cpu().numpy(), ends[:-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardScorer:
    """A policy, and this rank's share of a pass over samples."""

    policy: Policy
    device: torch.device
    max_tokens: int
    """Token limit of one forward pass: no sample may be longer."""
    rank: int
    num_ranks: int
    seed: int
    """Seed of the packing, the same on every rank."""

    @torch.no_grad()
    def __call__(self, samples: Sequence[TrainingSample], *, score: TurnScoreFn) -> Scores:
        """Each sample's numbers, in the order of its `turns`. Collective."""
        if not samples:
            return []
        lengths = [sample.num_tokens for sample in samples]
        ranks = plan(lengths, max_tokens=self.max_tokens, num_ranks=self.num_ranks, seed=self.seed)
        batches, found = ranks[self.rank], []
        for indices in batches:
            batch = to_device(pack([samples[index] for index in indices]), self.device)
            found.append(score(self.policy, batch).double())
        scores = gather_scores(
            samples, batches=batches, found=found, num_ranks=self.num_ranks, device=self.device
        )
        if isinstance(self.policy, FSDPModule):
            self.policy.reshard()  # as a backward pass would: the next gather must see new weights
        return scores


def scores_by_turn(samples: Sequence[TrainingSample], scores: Scores) -> dict[TurnKey, float]:
    """Each turn's number, over all samples."""
    return {
        (sample.group_id, sample.trajectory, turn): score
        for sample, found in zip(samples, scores, strict=True)
        for turn, score in zip(sample.turns.tolist(), found.tolist(), strict=True)
    }
