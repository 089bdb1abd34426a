"""Effective advantages: what the loss uses after a KL was subtracted (`kl=k1`), averaged over each turn's
tokens."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from learners.batch.packing import MicroBatch, plan
from learners.batch.samples import TrainingSample
from learners.training.forward_scoring import TurnKey, by_turn


class EffectiveAdvantages:
    """What the micro-batches of one rank's step took, in their order."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        """[num_turns] each."""

    def note(self, batch: MicroBatch, advantages: Float[Tensor, "L"]) -> None:
        """The next micro-batch's."""
        values = advantages.detach().double()
        zeros = values.new_zeros(len(batch.states))
        num_tokens = zeros.index_add(0, batch.turns, torch.ones_like(values))
        self._means.append(zeros.index_add(0, batch.turns, values) / num_tokens)

    def by_turn(
        self, samples: Sequence[TrainingSample], *, max_tokens: int, rank: int, num_ranks: int, seed: int
    ) -> dict[TurnKey, float]:
        """Each turn's mean over its tokens, of all ranks; the step's samples, packed as `micro_batches` was
        told to. Collective."""
        lengths = [sample.num_tokens for sample in samples]
        batches = plan(lengths, max_tokens=max_tokens, num_ranks=num_ranks, seed=seed)[rank]
        ends = np.cumsum([len(sample.turns) for sample in samples])
        places = np.split(np.arange(ends[-1]), ends[:-1])
        means = torch.zeros(int(ends[-1]), dtype=torch.float64, device=self._means[0].device)
        for indices, found in zip(batches, self._means, strict=True):
            if indices:  # a rank without work has taken one token that counts for nothing
                means[torch.from_numpy(np.concatenate([places[index] for index in indices]))] = found
        if num_ranks > 1:
            dist.all_reduce(means)
        return by_turn(samples, np.split(means.cpu().numpy(), ends[:-1]))
