"""Token weights of a step's loss, computed from all samples of the step. NumPy only; the same on every rank.

The loss is sum over tokens of weight x objective, divided by the step's number of loss tokens: weights of 1
give the mean over all tokens. Each weight is (share of its part) x (loss tokens of the step) / (denominator
of the sample), where a part is the whole step or, with `gym_shares`, one gym.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from learners.batch.samples import TrainingSample
from learners.config import LearnerConfig
from learners.loss_config import AggregationConfig

Denominators = Float64[ndarray, "num_samples"]
Aggregation = Callable[..., Denominators]
"""(samples of a part, the part's share, `aggregation.tokens`) -> denominator of each sample's token sum."""


def select_and_weigh(
    samples: Sequence[TrainingSample],
    *,
    config: LearnerConfig,
    gym_shares: Mapping[str, float],
    seed: int,
) -> tuple[list[TrainingSample], Float64[ndarray, "num_samples"]]:
    """The samples that the step learns from, and their weights."""
    shares = shares_of(config, gym_shares)
    selected = list(samples)
    if config.aggregation.type == "token_budget":
        selected = within_budget(samples, budget=config.aggregation.tokens, gym_shares=shares, seed=seed)
    return selected, sample_weights(selected, aggregation=config.aggregation, gym_shares=shares)


def shares_of(config: LearnerConfig, gym_shares: Mapping[str, float]) -> Mapping[str, float] | None:
    """Each gym's share of the loss; None if the step is weighed as a whole."""
    return gym_shares if config.per_gym_denominator and gym_shares else None


def turn_weights(
    samples: Sequence[TrainingSample], *, gym_shares: Mapping[str, float] | None
) -> Float64[ndarray, "num_samples"]:
    """Weight of each sample's turns in the critic's loss: the mean over the turns with a return, of the step,
    or of each gym with the gyms added up by their shares."""
    weights = np.zeros(len(samples))
    for share, indices in _parts(samples, gym_shares):
        num_turns = sum(samples[index].num_returns for index in indices)
        weights[indices] = share / max(1, num_turns)
    return weights


def sample_weights(
    samples: Sequence[TrainingSample],
    *,
    aggregation: AggregationConfig,
    gym_shares: Mapping[str, float] | None,
) -> Float64[ndarray, "num_samples"]:
    """Each sample's weight. With `gym_shares`, fixed by the recipe, a gym's part of the loss does not depend
    on which other gyms are in the step; None weighs the step as a whole. Raises ValueError for a gym without
    a share."""
    keys = aggregation.model_dump(exclude={"type"})
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    weights = np.zeros(len(samples))
    for share, indices in _parts(samples, gym_shares):
        part = [samples[index] for index in indices]
        denominators = AGGREGATIONS[aggregation.type](part, share, **keys)
        weights[indices] = share * num_tokens / denominators  # this order: exactly 1 if both are num_tokens
    return weights


def within_budget(
    samples: Sequence[TrainingSample], *, budget: int, gym_shares: Mapping[str, float] | None, seed: int
) -> list[TrainingSample]:
    """Whole trajectories in seeded order until they have `budget` loss tokens (C3PO, Ring-lite, arXiv
    2506.14731); with `gym_shares`, each gym until its share of them. At least one of each gym stays.

    The trajectory that reaches the budget is kept: leaving it out would favour short ones.
    """
    chosen: set[tuple[int, int]] = set()
    for share, indices in _parts(samples, gym_shares):
        lengths: dict[tuple[int, int], int] = {}
        for index in indices:
            key = (samples[index].group_id, samples[index].trajectory)
            lengths[key] = lengths.get(key, 0) + samples[index].num_loss_tokens
        keys, filled = list(lengths), 0
        for place in np.random.default_rng(seed).permutation(len(keys)):
            if filled >= share * budget:
                break
            chosen.add(keys[place])
            filled += lengths[keys[place]]
    return [sample for sample in samples if (sample.group_id, sample.trajectory) in chosen]


def token_mean(samples: Sequence[TrainingSample], _share: float) -> Denominators:
    """Every token counts the same: sum / number of tokens (DAPO, arXiv 2503.14476 eq. 8)."""
    return np.full(len(samples), _lengths(samples).sum())


def sequence_mean(samples: Sequence[TrainingSample], _share: float) -> Denominators:
    """Every trajectory counts the same, by the mean over its tokens (GRPO, arXiv 2402.03300 eq. 3). The parts
    of a forked trajectory count as one."""
    owners, num_trajectories = _owners(samples)
    return num_trajectories * np.bincount(owners, weights=_lengths(samples))[owners]


def constant_length(samples: Sequence[TrainingSample], _share: float, *, tokens: int) -> Denominators:
    """sum / (number of trajectories x a constant): a long trajectory weighs as many tokens as it has, and its
    length changes no other's weight (Dr. GRPO, arXiv 2503.20783)."""
    return np.full(len(samples), float(_owners(samples)[1] * tokens))


def token_budget(samples: Sequence[TrainingSample], share: float, *, tokens: int) -> Denominators:
    """sum / budget, independent of the number of tokens (C3PO); a gym's budget is its share of it."""
    return np.full(len(samples), share * tokens)


def _parts(
    samples: Sequence[TrainingSample], gym_shares: Mapping[str, float] | None
) -> list[tuple[float, ndarray]]:
    """(share, sample indices) of the whole step, or of each gym in it."""
    if gym_shares is None:
        return [(1.0, np.arange(len(samples)))]
    gyms = np.array([sample.gym for sample in samples])
    for gym in np.unique(gyms).tolist():
        if gym not in gym_shares:
            raise ValueError(
                f"per_gym_denominator: gym {gym!r} has no share of the loss: give it a weight in gyms.weights"
            )
    return [(gym_shares[gym], np.flatnonzero(gyms == gym)) for gym in np.unique(gyms).tolist()]


def _lengths(samples: Sequence[TrainingSample]) -> Float64[ndarray, "num_samples"]:
    return np.array([float(sample.num_loss_tokens) for sample in samples])


def _owners(samples: Sequence[TrainingSample]) -> tuple[ndarray, int]:
    """Each sample's trajectory, numbered from 0, and how many there are."""
    keys: dict[tuple[int, int], int] = {}
    owners = [keys.setdefault((sample.group_id, sample.trajectory), len(keys)) for sample in samples]
    return np.array(owners, dtype=np.int64), len(keys)


AGGREGATIONS: dict[str, Aggregation] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant_length": constant_length,
    "token_budget": token_budget,
}
