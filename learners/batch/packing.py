"""Micro-batches: the packing plan, which every learner computes identically, and packed tensors without
padding. No model, no Ray.

Legend: T tokens of a row, L of them in the loss, K turns with a token in the loss.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from learners.batch.samples import TrainingSample, places_of

SampleWeights = Float64[np.ndarray, "num_samples"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Samples end to end in one row, with the inputs of the loss at each loss token."""

    lengths: tuple[int, ...]  # [num_samples]
    """Tokens of each sample, in order; attention does not cross samples."""
    token_ids: Int64[Tensor, "T"]
    position_ids: Int64[Tensor, "T"]
    """Position within its sample."""
    predictors: Int64[Tensor, "L"]
    """Position of the token before each loss token; its hidden state predicts the loss token."""
    targets: Int64[Tensor, "L"]
    behavior_logprobs: Float32[Tensor, "L"]
    policy_versions: Int32[Tensor, "L"]
    advantages: Float32[Tensor, "L"]
    sequences: Int64[Tensor, "L"]
    """Index of the token's sample in the row."""
    turns: Int64[Tensor, "L"]
    """Index of the token's turn in the row, over all samples."""
    weights: Float64[Tensor, "L"]
    """Weight of the token in the loss; 1 for the mean over all tokens of the step."""
    states: Int64[Tensor, "K"]
    """Position of the token before each turn's completion; its hidden state is the critic's input."""
    returns: Float32[Tensor, "K"]
    """The critic's target for each turn; NaN if it has none."""
    turn_weights: Float64[Tensor, "K"]
    """Weight of the turn in the critic's loss."""


def plan(
    lengths: Sequence[int], *, max_tokens: int, num_ranks: int, seed: int
) -> list[list[tuple[int, ...]]]:
    """Sample indices of each rank's micro-batches: [num_ranks][num_micro_batches][num_samples].

    Samples are assigned longest first, each to the emptiest micro-batch, equal lengths in seeded order, which
    gives micro-batches of similar size. Every rank gets the same number of them (FSDP's collectives must
    match), so that some may be empty; the same input gives the same plan on every rank. Raises ValueError for
    a sample longer than `max_tokens`.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(
            f"micro_batch_tokens={max_tokens}: a micro-batch must hold the longest sample, which has "
            f"{max(lengths)} tokens: set learner.micro_batch_tokens to at least that"
        )
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-np.array(lengths, int)[shuffled], kind="stable")].tolist()
    num_bins = _round_up(max(1, -(-sum(lengths) // max_tokens)), num_ranks)
    while (bins := _fill(order, lengths=lengths, max_tokens=max_tokens, num_bins=num_bins)) is None:
        num_bins += num_ranks
    return [bins[rank::num_ranks] for rank in range(num_ranks)]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _fill(
    order: Sequence[int], *, lengths: Sequence[int], max_tokens: int, num_bins: int
) -> list[tuple[int, ...]] | None:
    """Assigns each sample to the emptiest of `num_bins` micro-batches; None if one does not fit."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    emptiest = [(0, b) for b in range(num_bins)]
    for index in order:
        filled, b = emptiest[0]
        if filled + lengths[index] > max_tokens:
            return None
        bins[b].append(index)
        heapq.heapreplace(emptiest, (filled + lengths[index], b))
    return [tuple(indices) for indices in bins]


def pack(
    samples: Sequence[TrainingSample],
    *,
    weights: SampleWeights | None = None,
    turn_weights: SampleWeights | None = None,
) -> MicroBatch:
    """The samples end to end, with each sample's weights at its tokens and turns (None means 1). Without
    samples: one token that counts for nothing, so that a rank without work joins every collective."""
    if not samples:
        zero = torch.zeros(1, dtype=torch.int64)
        none, nothing = zero[:0], torch.zeros(0)
        return MicroBatch(
            lengths=(1,), token_ids=zero, position_ids=zero, predictors=none, targets=none,
            behavior_logprobs=nothing, policy_versions=none.int(), advantages=nothing,
            sequences=none, turns=none, weights=nothing.double(), states=none, returns=nothing,
            turn_weights=nothing.double(),
        )  # fmt: skip
    lengths = [sample.num_tokens for sample in samples]
    num_loss_tokens = np.array([sample.num_loss_tokens for sample in samples])
    num_turns = np.array([len(sample.turns) for sample in samples])
    begins = np.cumsum([0, *lengths[:-1]])
    token_ids = np.concatenate([sample.token_ids for sample in samples], dtype=np.int64)
    positions = np.arange(max(lengths))
    states = np.concatenate([sample.turn_starts for sample in samples]) + np.repeat(begins - 1, num_turns)
    turn_lengths = np.concatenate([sample.turn_lengths for sample in samples])
    predictors = places_of(states, turn_lengths)
    advantages = np.concatenate([sample.advantages for sample in samples])
    ones = np.ones(len(samples))
    each, each_turn = (ones if given is None else given for given in (weights, turn_weights))
    arrays = {
        "token_ids": token_ids,
        "position_ids": np.concatenate([positions[:length] for length in lengths]),
        "predictors": predictors,
        "targets": token_ids[predictors + 1],
        "behavior_logprobs": np.concatenate([sample.behavior_logprobs for sample in samples]),
        "policy_versions": np.concatenate([sample.policy_versions for sample in samples]),
        "advantages": np.repeat(advantages, turn_lengths),
        "sequences": np.repeat(np.arange(len(samples)), num_loss_tokens),
        "turns": np.repeat(np.arange(len(states)), turn_lengths),
        "weights": np.repeat(each, num_loss_tokens),
        "states": states,
        "returns": np.concatenate([sample.returns for sample in samples]),
        "turn_weights": np.repeat(each_turn, num_turns),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MicroBatch(lengths=tuple(lengths), **tensors)


def micro_batches(
    samples: Sequence[TrainingSample],
    *,
    weights: SampleWeights | None = None,
    turn_weights: SampleWeights | None = None,
    max_tokens: int,
    rank: int,
    num_ranks: int,
    seed: int,
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the step, packed one at a time, weights as in `pack`."""
    lengths = [sample.num_tokens for sample in samples]
    for indices in plan(lengths, max_tokens=max_tokens, num_ranks=num_ranks, seed=seed)[rank]:
        mine = list(indices)
        yield pack(
            [samples[index] for index in mine],
            weights=None if weights is None else weights[mine],
            turn_weights=None if turn_weights is None else turn_weights[mine],
        )
