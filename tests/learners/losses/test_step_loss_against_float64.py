"""The whole loss of a step against a reference in plain float64 Python, one token after the other: every
policy loss, aggregation, importance level and KL, through masks, forks and ragged lengths, in several
micro-batches.

The reference knows no tensor, no segment sum and no packing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.batch.aggregation import AGGREGATIONS, select_and_weigh
from learners.batch.packing import pack, plan
from learners.batch.samples import TrainingSample, samples_from_table
from learners.config import LearnerConfig
from learners.loss_config import LossConfig
from learners.losses.policy_loss import POLICY_LOSSES
from learners.model.policy import PolicyOutput
from learners.training.optimizer_step import grpo_sums
from tests.effort import examples
from tests.learners.tiny_parts import loss_config, random_table

SHARES = {"function": 0.3, "search": 0.7}
CLOSE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What policy and reference model say of each loss token of a sample."""

    logprobs: list[float]
    entropies: list[float]
    reference: list[float]


def random_step(seed: int) -> tuple[list[TrainingSample], list[Said]]:
    """Dialogues of two gyms, some forked between their turns, each turn with its own advantage, some 0."""
    rng = np.random.default_rng(seed)
    samples: list[TrainingSample] = []
    for group_id in range(3):
        table = random_table(group_id=group_id, group_size=3, seed=seed)
        forked = table["forked"].to_numpy() | (rng.random(table.num_rows) < 0.3)
        table = table.set_column(table.schema.get_field_index("forked"), "forked", [forked])
        advantages = rng.normal(size=table.num_rows) * (rng.random(table.num_rows) > 0.1)
        gym = "search" if group_id == 1 else "function"
        samples += [replace(s, gym=gym) for s in samples_from_table(table, advantages=advantages)]
    said = []
    for sample in samples:
        behavior = sample.behavior_logprobs.astype(float)
        noise = rng.normal(scale=0.5, size=(3, len(behavior)))
        said.append(
            Said(
                logprobs=(behavior + noise[0]).tolist(),
                entropies=np.abs(noise[1]).tolist(),
                reference=(behavior + noise[2]).tolist(),
            )
        )
    return samples, said


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def objective(
    loss: LossConfig, *, token: float, segment: float, advantage: float, logprob: float
) -> tuple[float, float]:
    """A token's objective and its slope by the token's logprob, at its own ratio and its segment's."""
    if loss.type == "reinforce":
        return advantage * logprob, advantage
    if loss.type == "sapo":
        tau = loss.positive if advantage > 0 else loss.negative
        gate = 1 / (1 + exp(-tau * (token - 1)))
        return 4 / tau * gate * advantage, 4 * gate * (1 - gate) * token * advantage
    assert loss.type != "custom"
    high = 1 + loss.clip_high
    if loss.type == "cispo":
        return min(token, high) * advantage * logprob, min(token, high) * advantage
    ratio = token if loss.type == "ppo" else segment
    value, slope = ratio * advantage, ratio * advantage
    bounded = min(max(ratio, 1 - loss.clip_low), high) * advantage
    if bounded < value:
        value, slope = bounded, 0.0
    if loss.type == "ppo" and advantage < 0 and loss.dual_clip * advantage > value:
        value, slope = loss.dual_clip * advantage, 0.0
    return value, slope


def importance(config: LearnerConfig, ratio: float) -> float:
    weights = config.importance
    if weights.type == "none":
        return 1.0
    if weights.type == "truncated":
        return min(ratio, weights.high)
    inside = weights.low <= ratio <= weights.high
    return (ratio if config.loss.type == "reinforce" else 1.0) if inside else 0.0


def kl(config: LearnerConfig, logprob: float, reference: float) -> tuple[float, float]:
    """A token's KL term and its slope."""
    if config.kl.type == "k2":
        return (logprob - reference) ** 2 / 2, logprob - reference
    return exp(reference - logprob) - 1 - (reference - logprob), 1 - exp(reference - logprob)


def denominators(samples: Sequence[TrainingSample], config: LearnerConfig) -> list[float]:
    """By what each sample's token sum is divided, its gym's share in it."""

    def one(sample: TrainingSample) -> float:
        mine = [s for s in samples if not config.per_gym_denominator or s.gym == sample.gym]
        share = SHARES[sample.gym] if config.per_gym_denominator else 1.0
        trajectories = {(s.group_id, s.trajectory) for s in mine}
        own = sum(
            len(s.behavior_logprobs)
            for s in mine
            if (s.group_id, s.trajectory) == (sample.group_id, sample.trajectory)
        )
        return {
            "token_mean": sum(len(s.behavior_logprobs) for s in mine) / share,
            "sequence_mean": len(trajectories) * own / share,
            "constant_length": len(trajectories) * TOKENS["constant_length"] / share,
            "token_budget": float(TOKENS["token_budget"]),
        }[config.aggregation.type]

    return [one(sample) for sample in samples]


def reference_step(
    samples: Sequence[TrainingSample], said: Sequence[Said], config: LearnerConfig
) -> tuple[float, list[list[float]]]:
    """The loss, and its gradient by each sample's logprobs and then its entropies."""
    loss, slopes = 0.0, []
    level = "token" if config.importance.type == "none" else config.importance.level
    for sample, says, denominator in zip(samples, said, denominators(samples, config), strict=True):
        log_ratios = [
            own - behavior
            for own, behavior in zip(says.logprobs, sample.behavior_logprobs.tolist(), strict=True)
        ]
        turns = [which for which, length in enumerate(sample.turn_lengths.tolist()) for _ in range(length)]
        mine: list[float] = []
        for at, which in enumerate(turns):
            of_turn = [r for r, turn in zip(log_ratios, turns, strict=True) if turn == which]
            segment = of_turn if config.loss.type == "turn" else log_ratios
            weighed = {"token": [log_ratios[at]], "turn": of_turn, "sequence": log_ratios}
            logprob, advantage = says.logprobs[at], float(sample.advantages[which])
            if config.kl.type == "k1":
                advantage -= config.kl.coefficient * (logprob - says.reference[at])
            value, slope = objective(
                config.loss,
                token=exp(log_ratios[at]),
                segment=exp(mean(segment)),
                advantage=advantage,
                logprob=logprob,
            )
            weight = importance(config, exp(sum(weighed[level])))
            value, slope = -weight * value, -weight * slope
            if config.kl.type == "k2" or config.kl.type == "k3":
                term, term_slope = kl(config, logprob, says.reference[at])
                value += weight * config.kl.coefficient * term
                slope += weight * config.kl.coefficient * term_slope
            value -= config.entropy.coefficient * says.entropies[at]
            loss += value / denominator
            mine.append(slope / denominator)
        slopes.append(mine + [-config.entropy.coefficient / denominator] * len(turns))
    return loss, slopes


def our_step(
    samples: Sequence[TrainingSample], said: Sequence[Said], config: LearnerConfig, *, seed: int
) -> tuple[float, list[list[float]]]:
    """As the learner does it: weights of the step, micro-batches, sums of each."""
    taken, weights = select_and_weigh(samples, config=config, gym_shares=SHARES, seed=0)
    assert len(taken) == len(samples)
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    longest = max(sample.num_tokens for sample in samples)
    ((*bins,),) = plan([s.num_tokens for s in samples], max_tokens=2 * longest, num_ranks=1, seed=seed)
    assert len(bins) > 1
    loss = 0.0
    slopes: list[list[float]] = [[] for _ in samples]
    for indices in bins:
        of = [said[index] for index in indices]
        logprobs, entropies, reference = (
            torch.tensor([x for says in of for x in getattr(says, name)], dtype=torch.float64)
            for name in ("logprobs", "entropies", "reference")
        )
        flat = PolicyOutput(
            logprobs=logprobs.requires_grad_(), entropies=entropies.requires_grad_(), values=torch.zeros(0)
        )
        sums = grpo_sums(
            pack([samples[index] for index in indices], weights=weights[list(indices)]),
            flat,
            config=config,
            num_tokens=num_tokens,
            policy_version=0,
            reference=(lambda _, x=reference: x) if config.kl.type != "none" else None,
        )
        loss += sums["loss"].item()
        for gradient in torch.autograd.grad(
            sums["loss"], (flat.logprobs, flat.entropies), allow_unused=True, materialize_grads=True
        ):
            parts = gradient.split([len(says.logprobs) for says in of])
            for index, part in zip(indices, parts, strict=True):
                slopes[index] += part.tolist()
    return loss, slopes


def check(config: LearnerConfig, *, seed: int) -> None:
    samples, said = random_step(seed)
    loss, slopes = our_step(samples, said, config, seed=seed)
    expected, expected_slopes = reference_step(samples, said, config)
    assert loss == pytest.approx(expected, rel=0, abs=CLOSE)
    for mine, theirs in zip(slopes, expected_slopes, strict=True):
        assert mine == pytest.approx(theirs, rel=0, abs=CLOSE)
    assert max(abs(slope) for mine in expected_slopes for slope in mine) > 1e3 * CLOSE


TOKENS = {"constant_length": 11, "token_budget": 500}


def config_of(loss: str, aggregation: str, **others: Any) -> LearnerConfig:
    tokens = {"tokens": TOKENS[aggregation]} if aggregation in TOKENS else {}
    return LearnerConfig.model_validate(
        {
            "loss": loss_config(loss, clip_low=0.15, clip_high=0.3, dual_clip=1.6),
            "aggregation": {"type": aggregation, **tokens},
            **others,
        }
    )


@pytest.mark.medium
@pytest.mark.parametrize("per_gym", [False, True])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_every_loss_in_every_aggregation(loss: str, aggregation: str, per_gym: bool):
    check(config_of(loss, aggregation, per_gym_denominator=per_gym, entropy={"coefficient": 0.02}), seed=1)


WEIGHTS = [
    *[(loss, "masked", level) for loss in POLICY_LOSSES for level in ("token", "turn", "sequence")],
    *[("reinforce", "truncated", level) for level in ("token", "turn", "sequence")],
]


@pytest.mark.parametrize(("loss", "kind", "level"), WEIGHTS)
def test_every_importance_weight_at_every_level(loss: str, kind: str, level: str):
    low = {"low": 0.6} if kind == "masked" else {}
    importance = {"type": kind, "level": level, "high": 1.7, **low}
    check(config_of(loss, "sequence_mean", importance=importance), seed=2)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_every_kl_with_every_loss(loss: str, estimator: str):
    check(config_of(loss, "token_mean", kl={"type": estimator, "coefficient": 0.3}), seed=3)


@settings(max_examples=examples(25), deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_any_combination(data: st.DataObject, seed: int):
    choose: Callable[[Sequence[Any]], Any] = lambda options: data.draw(st.sampled_from(options))  # noqa: E731
    loss = choose(list(POLICY_LOSSES))
    kind = choose(("none", "masked", "truncated") if loss == "reinforce" else ("none", "masked"))
    others: dict[str, Any] = {
        "per_gym_denominator": choose((False, True)),
        "entropy": {"coefficient": choose((0.0, 0.05))},
    }
    if kind != "none":
        level = choose(("token", "turn", "sequence"))
        others["importance"] = {"type": kind, "high": 1.0 + log(choose((2, 3, 4))), "level": level}
    estimator = choose(("none", "k1", "k2", "k3"))
    if estimator != "none":
        others["kl"] = {"type": estimator, "coefficient": 0.2}
    check(config_of(loss, choose(list(AGGREGATIONS)), **others), seed=seed)
