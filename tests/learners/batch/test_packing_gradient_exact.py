"""A packed batch gives the gradient of the same batch unpacked, one sequence at a time: 1e-9 in float64,
through policy, packing and loss as the learner runs them.

The unpacked side takes nothing of ours but the loss and the weights: transformers' own model and attention,
whole logits, autograd.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.batch.aggregation import AGGREGATIONS, select_and_weigh
from learners.batch.packing import micro_batches, pack
from learners.batch.samples import TrainingSample, samples_from_table
from learners.config import LearnerConfig
from learners.losses.policy_loss import POLICY_LOSSES
from learners.model import policy as policy_module
from learners.model.policy import PACKED_CAUSAL, Policy, PolicyOutput
from learners.training.optimizer_step import accumulate_gradients, grpo_sums
from tests.learners.tiny_parts import (
    VOCAB_SIZE,
    loss_config,
    loss_mask,
    random_table,
    tiny_model,
    tiny_policy,
)

pytestmark = pytest.mark.medium

TEMPERATURE = 0.8
SHARES = {"function": 0.4, "search": 0.6}
CPU = torch.device("cpu")
CLOSE = 1e-9


def dialogues(seed: int) -> list[TrainingSample]:
    """Two gyms, forks, each turn its own advantage; ratios lie about 1."""
    rng = np.random.default_rng(seed)
    policy, samples = tiny_policy(temperature=TEMPERATURE), []
    for group_id in range(2):
        table = random_table(group_id=group_id, group_size=3, seed=seed)
        forked = table["forked"].to_numpy() | (rng.random(table.num_rows) < 0.3)
        table = table.set_column(table.schema.get_field_index("forked"), "forked", [forked])
        gym = "search" if group_id == 1 else "function"
        for sample in samples_from_table(table, advantages=rng.normal(size=table.num_rows)):
            with torch.no_grad():
                own = policy(pack([sample])).logprobs.numpy()
            behavior = own + rng.normal(scale=0.3, size=len(own))
            samples.append(replace(sample, gym=gym, behavior_logprobs=behavior.astype(np.float32)))
    return samples


SAMPLES = dialogues(0)
LONGEST = max(sample.num_tokens for sample in SAMPLES)


def packed_gradients(
    config: LearnerConfig,
    *,
    max_tokens: int,
    seed: int = 0,
    num_ranks: int = 1,
    policy: Policy | None = None,
    reference: Policy | None = None,
) -> dict[str, Tensor]:
    """The learner's way; ranks one after the other."""
    policy = policy or tiny_policy(
        temperature=TEMPERATURE, entropies_have_gradient=config.entropy.coefficient > 0
    )
    samples, weights = select_and_weigh(SAMPLES, config=config, gym_shares=SHARES, seed=5)
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    loss_fn = partial(
        grpo_sums,
        config=config,
        num_tokens=num_tokens,
        policy_version=0,
        reference=partial(said_by, reference) if reference is not None else None,
    )
    for rank in range(num_ranks):
        batches = micro_batches(
            samples, weights=weights, max_tokens=max_tokens, rank=rank, num_ranks=num_ranks, seed=seed
        )
        accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


@torch.no_grad()
def said_by(reference: Policy, batch: Any) -> Tensor:
    return reference(batch).logprobs


def one_at_a_time(config: LearnerConfig, *, reference: Policy | None = None) -> dict[str, Tensor]:
    """Each sample through the plain model by itself."""
    model = tiny_model().double()
    model.set_attn_implementation("sdpa")  # "eager" takes its softmax in float32
    samples, weights = select_and_weigh(SAMPLES, config=config, gym_shares=SHARES, seed=5)
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    for sample, weight in zip(samples, weights, strict=True):
        ids = torch.from_numpy(sample.token_ids).long()
        log_probs = (model(ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        kept = torch.from_numpy(loss_mask(sample)[1:])
        said = PolicyOutput(
            logprobs=log_probs.gather(1, ids[1:, None])[kept, 0],
            entropies=-(log_probs.exp() * log_probs).sum(-1)[kept],
            values=torch.zeros(0),
        )
        batch = pack([sample], weights=np.array([weight]))
        sums = grpo_sums(
            batch,
            said,
            config=config,
            num_tokens=num_tokens,
            policy_version=0,
            reference=partial(said_by, reference) if reference is not None else None,
        )
        sums["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=CLOSE), name
        assert gradient.abs().max() > 1e3 * CLOSE, name


def config_of(loss: str, **others: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({"loss": loss_config(loss, clip_low=0.25, clip_high=0.3), **others})


TOKENS = {"constant_length": 30, "token_budget": 60}  # a budget that leaves some out


@pytest.mark.parametrize("per_gym", [False, True])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_every_loss_in_every_aggregation(loss: str, aggregation: str, per_gym: bool):
    tokens = {"tokens": TOKENS[aggregation]} if aggregation in TOKENS else {}
    config = config_of(loss, aggregation={"type": aggregation, **tokens}, per_gym_denominator=per_gym)
    agree(packed_gradients(config, max_tokens=2 * LONGEST, seed=len(loss)), one_at_a_time(config))


@pytest.mark.parametrize("level", ["token", "turn", "sequence"])
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_every_loss_under_every_importance_level(loss: str, level: str):
    config = config_of(loss, importance={"type": "masked", "level": level, "low": 0.6, "high": 1.8})
    agree(packed_gradients(config, max_tokens=3 * LONGEST), one_at_a_time(config))
    if loss == "reinforce":
        config = config_of(loss, importance={"type": "truncated", "level": level, "high": 1.2})
        agree(packed_gradients(config, max_tokens=3 * LONGEST), one_at_a_time(config))


@pytest.mark.parametrize("loss", ["ppo", "gspo", "turn"])
def test_the_gradient_does_not_depend_on_the_packing(loss: str):
    """One row, rows of about one sample, other seeds, three ranks of which some may have less."""
    config = config_of(loss, aggregation="sequence_mean")
    expected = one_at_a_time(config)
    for max_tokens, seed, num_ranks in ((10_000, 0, 1), (LONGEST, 1, 1), (2 * LONGEST, 2, 1), (80, 3, 3)):
        found = packed_gradients(config, max_tokens=max_tokens, seed=seed, num_ranks=num_ranks)
        agree(found, expected)


def test_with_an_entropy_bonus():
    config = config_of("turn", aggregation="sequence_mean", entropy={"coefficient": 0.2})
    agree(packed_gradients(config, max_tokens=2 * LONGEST), one_at_a_time(config))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_with_a_kl_to_a_reference(estimator: str):
    """The reference differs from the policy; it runs packed on one side and alone on the other."""
    reference = tiny_policy(temperature=TEMPERATURE)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.sin(torch.arange(parameter.numel())).view_as(parameter)
    config = config_of("ppo", kl={"type": estimator, "coefficient": 0.5})
    expected = one_at_a_time(config, reference=reference)
    agree(packed_gradients(config, max_tokens=2 * LONGEST, reference=reference), expected)
    without = packed_gradients(config_of("ppo"), max_tokens=2 * LONGEST)
    assert any(not torch.allclose(without[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.2])
def test_with_recomputed_activations_and_a_head_in_chunks(
    entropy_coefficient: float, monkeypatch: pytest.MonkeyPatch
):
    config = config_of("gspo", entropy={"coefficient": entropy_coefficient})
    monkeypatch.setattr(policy_module, "LOGITS_AT_ONCE", 5 * VOCAB_SIZE)
    model = tiny_model().double()
    model.set_attn_implementation(PACKED_CAUSAL)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model, temperature=TEMPERATURE, entropies_have_gradient=entropy_coefficient > 0)
    found = packed_gradients(config, max_tokens=3 * LONGEST, policy=policy.train())
    agree(found, one_at_a_time(config))
