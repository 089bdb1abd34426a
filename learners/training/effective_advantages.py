"""Effective advantages: those that the loss uses after a KL was subtracted (`kl=k1`), averaged over each
turn's tokens."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from learners.batch.packing import MicroBatch, plan
from learners.batch.samples import TrainingSample
from learners.training.forward_scoring import TurnKey, gather_scores, scores_by_turn, turn_means


class EffectiveAdvantages:
    """Records the advantages of one rank's micro-batches during a step."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        """[num_turns] of each micro-batch, in order."""

    def record(self, batch: MicroBatch, advantages: Float[Tensor, "L"]) -> None:
        """Records those of the next micro-batch."""
        self._means.append(turn_means(advantages.detach().double(), batch))

    def by_turn(
        self, samples: Sequence[TrainingSample], *, max_tokens: int, rank: int, num_ranks: int, seed: int
    ) -> dict[TurnKey, float]:
        """Each turn's mean over its tokens, of all ranks. The arguments are those of the step's
        `micro_batches`. Collective."""
        lengths = [sample.num_tokens for sample in samples]
        batches = plan(lengths, max_tokens=max_tokens, num_ranks=num_ranks, seed=seed)[rank]
        means = gather_scores(
            samples,
            batches=batches,
            found=self._means,
            num_ranks=num_ranks,
            device=self._means[0].device,
        )
        return scores_by_turn(samples, means)
