"""Our losses against those of TRL's own trainer: TRL pads the dialogues and computes its loss, we pack the
same dialogues and compute ours, from the same logprobs.

Loss and gradient by every logprob must agree to 1e-6; what the two define differently stands at its test.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from learners.batch.aggregation import select_and_weigh
from learners.batch.packing import MicroBatch, pack
from learners.batch.samples import TrainingSample, samples_from_table
from learners.config import LearnerConfig
from learners.loss_config import (
    CispoConfig,
    EntropyConfig,
    MeanConfig,
    ReferenceKlConfig,
    SapoConfig,
    TurnClipConfig,
)
from learners.model.policy import Policy, PolicyOutput
from learners.training.optimizer_step import grpo_sums, sft_sums
from tests.learners.tiny_parts import VOCAB_SIZE, loss_mask, random_table, tiny_model, tiny_policy

pytestmark = pytest.mark.slow  # importing TRL takes some seconds

GROUP_SIZE, NUM_GROUPS = 4, 2
LONGEST = 40
"""Tokens by which constant lengths divide."""
CLOSE = 1e-6
NO_SAMPLER: dict[str, Any] = {"vllm_importance_sampling_correction": False}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """TRL's trainer on the tiny model in float64; each test sets what it needs and what it played before is
    forgotten. Its rollouts are `trainer.samples`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        words = {str(number): number for number in range(VOCAB_SIZE)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
        )
        made = GRPOTrainer(
            model=tiny_model().double(),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=str(tmp_path_factory.mktemp("trl")),
                per_device_train_batch_size=GROUP_SIZE * NUM_GROUPS,
                num_generations=GROUP_SIZE,
                max_completion_length=LONGEST,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
            ),
            train_dataset=Dataset.from_list([{"prompt": "2"}]),
            processing_class=tokenizer,
            rollout_func=lambda _prompts, trainer: rollouts(trainer.samples),  # pyright: ignore
        )
    assert made.model is not None
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    made._last_loaded_step = made.state.global_step  # no engine whose weights want sending
    yield made


def rollouts(samples: list[TrainingSample]) -> dict[str, list[list[Any]]]:
    """Dialogues as TRL takes them: the first context is the prompt, all that follows the completion."""
    starts = [int(loss_mask(sample).argmax()) for sample in samples]
    pairs = list(zip(samples, starts, strict=True))
    return {
        "prompt_ids": [sample.token_ids[:start].tolist() for sample, start in pairs],
        "completion_ids": [sample.token_ids[start:].tolist() for sample, start in pairs],
        "logprobs": [of_all_tokens(sample)[start:].tolist() for sample, start in pairs],
        "env_mask": [loss_mask(sample)[start:].astype(int).tolist() for sample, start in pairs],
    }


def of_all_tokens(sample: TrainingSample) -> np.ndarray:  # [num_tokens]
    """The behavior logprobs, 0 where the policy said nothing."""
    logprobs = np.zeros(sample.num_tokens, np.float32)
    logprobs[loss_mask(sample)] = sample.behavior_logprobs
    return logprobs


def dialogues(seed: int) -> list[TrainingSample]:
    """Two groups of two-turn dialogues of mixed lengths; a dialogue's tokens share a random advantage, some
    0."""
    rng = np.random.default_rng(seed)
    samples = []
    for group_id in range(NUM_GROUPS):
        table = random_table(group_id=group_id, group_size=GROUP_SIZE, seed=seed)
        drawn = rng.normal(size=GROUP_SIZE) * (rng.random(GROUP_SIZE) > 0.1)
        samples += samples_from_table(table, advantages=drawn[table["trajectory"].to_numpy()])
    return samples


def trl_inputs(trainer: Any, samples: list[TrainingSample], **settings: Any) -> dict[str, Tensor]:
    """TRL's padded batch of these dialogues, with our advantages."""
    for name, value in settings.items():
        owner = trainer if hasattr(trainer, name) else trainer.args
        assert hasattr(owner, name), name
        setattr(owner, name, value)
    trainer.samples = samples
    inputs = trainer._generate_and_score_completions([{"prompt": "2"} for _ in samples])
    inputs["advantages"] = torch.tensor([float(s.advantages[0]) for s in samples]).double()
    return inputs


def trl_loss(
    trainer: Any, inputs: dict[str, Tensor], flat: PolicyOutput, **settings: Any
) -> tuple[float, Tensor]:
    """TRL's loss where its model says `flat` of the loss tokens, and the gradient by each of them."""
    for name, value in settings.items():
        setattr(trainer if hasattr(trainer, name) else trainer.args, name, value)
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    num_prompt = inputs["prompt_ids"].shape[1]
    places = torch.nn.functional.pad(mask, (num_prompt - 1, 0))
    rng = torch.Generator().manual_seed(1)
    said = torch.randn(places.shape, generator=rng, dtype=torch.float64)  # what lies outside must not count
    logprobs = said.masked_scatter(places, flat.logprobs.detach()).requires_grad_()
    entropies = said.masked_scatter(places, flat.entropies.detach()).requires_grad_()
    model = lambda **_: SimpleNamespace(log_probs=logprobs, entropy=entropies)  # noqa: E731
    loss = trainer._compute_loss(model, inputs)
    gradients = torch.autograd.grad(loss, (logprobs, entropies), allow_unused=True, materialize_grads=True)
    for gradient in gradients:
        assert not gradient[~places].any()
    return loss.item(), torch.cat([gradient[places] for gradient in gradients])


def our_loss(
    samples: list[TrainingSample],
    flat: PolicyOutput,
    config: LearnerConfig,
    reference: Tensor | None = None,
) -> tuple[float, Tensor]:
    """As the learner does it, from samples to the sums of one micro-batch."""
    taken, weights = select_and_weigh(samples, config=config, gym_shares={}, seed=0)
    assert len(taken) == len(samples)
    batch = pack(taken, weights=weights)
    num_tokens = sum(sample.num_loss_tokens for sample in taken)
    sums = grpo_sums(
        batch,
        flat,
        config=config,
        num_tokens=num_tokens,
        policy_version=0,
        reference=None if reference is None else lambda _: reference,
    )
    gradients = torch.autograd.grad(
        sums["loss"], (flat.logprobs, flat.entropies), allow_unused=True, materialize_grads=True
    )
    return sums["loss"].item(), torch.cat(gradients)


def said_by_a_policy(samples: list[TrainingSample], *, seed: int, spread: float = 0.5) -> PolicyOutput:
    """Random logprobs about the sampler's, of each loss token in order of the samples."""
    batch, rng = pack(samples), torch.Generator().manual_seed(seed)
    noise = torch.randn(len(batch.targets), generator=rng, dtype=torch.float64) * spread
    return PolicyOutput(
        logprobs=(batch.behavior_logprobs.double() + noise).requires_grad_(),
        entropies=noise.square().requires_grad_(),
        values=torch.zeros(0),
    )


def agree(ours: tuple[float, Tensor], theirs: tuple[float, Tensor], *, value: bool = True) -> None:
    if value:
        assert ours[0] == pytest.approx(theirs[0], rel=0, abs=CLOSE)
    assert torch.allclose(ours[1], theirs[1], rtol=0, atol=CLOSE)
    assert theirs[1].abs().max() > 1e3 * CLOSE


CLIPS: dict[str, Any] = {"clip_low": 0.15, "clip_high": 0.25}
TRL_CLIPS: dict[str, Any] = {"epsilon_low": 0.15, "epsilon_high": 0.25}
CONSTANT: dict[str, Any] = {"aggregation": {"type": "constant_length", "tokens": LONGEST}}
AGGREGATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token_mean": ({"aggregation": "token_mean"}, {"loss_type": "dapo"}),
    "token_mean in one micro-batch": ({"aggregation": "token_mean"}, {"loss_type": "bnpo"}),
    "sequence_mean": ({"aggregation": "sequence_mean"}, {"loss_type": "grpo"}),
    "constant_length": (CONSTANT, {"loss_type": "dr_grpo"}),
    # A budget that all dialogues just fill is Dr. GRPO's constant times their number.
    "token_budget": (
        {"aggregation": {"type": "token_budget", "tokens": LONGEST * GROUP_SIZE * NUM_GROUPS}},
        {"loss_type": "dr_grpo"},
    ),
}
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo": (
        {"loss": {"type": "ppo", "dual_clip": 1.8, **CLIPS}},
        {"delta": 1.8, "importance_sampling_level": "token"},
    ),
    # Ours is GSPO-token, TRL's GSPO: one gradient, as a dialogue's tokens share their advantage.
    "gspo": ({"loss": {"type": "gspo", **CLIPS}}, {"delta": None, "importance_sampling_level": "sequence"}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_clipped_losses_agree_in_every_aggregation(trainer: Any, loss: str, aggregation: str, seed: int):
    (ours, theirs), (our_sum, their_sum) = LOSSES[loss], AGGREGATIONS[aggregation]
    samples = dialogues(seed)
    flat = said_by_a_policy(samples, seed=seed)
    inputs = sampled(trl_inputs(trainer, samples, **NO_SAMPLER))
    settings = {**TRL_CLIPS, **theirs, **their_sum, "beta": 0.0}
    config = LearnerConfig(**ours, **our_sum)
    agree(our_loss(samples, flat, config), trl_loss(trainer, inputs, flat, **settings))


def sampled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sampler's logprobs as the ones that the ratio is taken against, as ours always is."""
    return {**inputs, "old_per_token_logps": inputs["sampling_per_token_logps"].double()}


@pytest.mark.parametrize("seed", range(3))
def test_cispo_agrees(trainer: Any, seed: int):
    """TRL's epsilon_high is the bound itself, ours is counted from 1. Only the mean over tokens has it."""
    samples = dialogues(seed)
    flat = said_by_a_policy(samples, seed=seed)
    inputs = sampled(trl_inputs(trainer, samples, **NO_SAMPLER))
    settings = {"loss_type": "cispo", "epsilon_high": 1.25, "importance_sampling_level": "token"}
    config = LearnerConfig(loss=CispoConfig(clip_high=0.25))
    agree(our_loss(samples, flat, config), trl_loss(trainer, inputs, flat, **settings))


@pytest.mark.parametrize("seed", range(3))
def test_sapo_agrees(trainer: Any, seed: int):
    """TRL knows it in the mean over sequences only."""
    samples = dialogues(seed)
    flat = said_by_a_policy(samples, seed=seed)
    inputs = sampled(trl_inputs(trainer, samples, **NO_SAMPLER))
    settings: dict[str, Any] = {"loss_type": "sapo", "importance_sampling_level": "token"}
    settings |= {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.5}
    config = LearnerConfig(
        loss=SapoConfig(positive=1.0, negative=1.5), aggregation=MeanConfig(type="sequence_mean")
    )
    agree(our_loss(samples, flat, config), trl_loss(trainer, inputs, flat, **settings))


@pytest.mark.parametrize("seed", range(3))
def test_the_turn_ratio_is_gspo_of_turns_as_sequences(trainer: Any, seed: int):
    """TRL has no turns: its sequences are our turns here, cut out of the dialogues, and every token weighs
    alike."""
    samples = dialogues(seed)
    flat = said_by_a_policy(samples, seed=seed)
    turns = [one_turn(sample, turn) for sample in samples for turn in (0, 1)]
    inputs = sampled(trl_inputs(trainer, turns, **NO_SAMPLER))
    settings = {**TRL_CLIPS, "delta": None, "importance_sampling_level": "sequence", "loss_type": "dapo"}
    config = LearnerConfig(loss=TurnClipConfig(**CLIPS))
    agree(our_loss(samples, flat, config), trl_loss(trainer, inputs, flat, **settings))


def one_turn(sample: TrainingSample, turn: int) -> TrainingSample:
    """The turn's tokens alone: its context is its prompt."""
    ends = sample.turn_starts + sample.turn_lengths
    begin = int(ends[turn - 1]) if turn else 0
    said_end = int(sample.turn_lengths[: turn + 1].sum())
    said = slice(said_end - int(sample.turn_lengths[turn]), said_end)
    of_turns = ("turns", "turn_lengths", "advantages", "returns")
    return replace(
        sample,
        token_ids=sample.token_ids[begin : int(ends[turn])],
        behavior_logprobs=sample.behavior_logprobs[said],
        policy_versions=sample.policy_versions[said],
        turn_starts=sample.turn_starts[[turn]] - begin,
        **{name: getattr(sample, name)[[turn]] for name in of_turns},
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_kl_term_agrees_in_every_aggregation(trainer: Any, aggregation: str, beta: float):
    """TRL's only estimator is k3. It multiplies it by the ratio unless told not to; ours is GRPO's as
    published."""
    (ours, theirs), (our_sum, their_sum) = LOSSES["ppo"], AGGREGATIONS[aggregation]
    samples = dialogues(5)
    flat = said_by_a_policy(samples, seed=5)
    reference = said_by_a_policy(samples, seed=6).logprobs.detach()
    inputs = sampled(trl_inputs(trainer, samples, **NO_SAMPLER, beta=0.0))
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    inputs["ref_per_token_logps"] = torch.zeros(mask.shape).double().masked_scatter(mask, reference)
    config = LearnerConfig(**ours, **our_sum, kl=ReferenceKlConfig(type="k3", coefficient=beta))
    settings = {**TRL_CLIPS, **theirs, **their_sum, "beta": beta, "use_bias_correction_kl": False}
    try:
        expected = trl_loss(trainer, inputs, flat, **settings)
    finally:
        trainer.beta = 0.0
    agree(our_loss(samples, flat, config, reference), expected)


def test_the_entropy_bonus_agrees(trainer: Any):
    """TRL's bonus is the mean over tokens whatever the loss divides by; ours follows the aggregation."""
    samples = dialogues(7)
    flat = said_by_a_policy(samples, seed=7)
    inputs = sampled(trl_inputs(trainer, samples, **NO_SAMPLER))
    settings = {**TRL_CLIPS, **LOSSES["ppo"][1], "loss_type": "dapo", "entropy_coef": 0.03}
    config = LearnerConfig(**LOSSES["ppo"][0], entropy=EntropyConfig(coefficient=0.03))
    trainer._entropy_bonus_enabled = True
    try:
        expected = trl_loss(trainer, inputs, flat, **settings)
    finally:
        trainer._entropy_bonus_enabled = False
    agree(our_loss(samples, flat, config), expected)


LEVELS = [
    ("token_truncate", "truncated", "token"),
    ("token_mask", "masked", "token"),
    ("sequence_truncate", "truncated", "sequence"),
    ("sequence_mask", "masked", "sequence"),
]


@pytest.mark.parametrize(("mode", "importance", "level"), LEVELS)
def test_importance_weights_agree(trainer: Any, mode: str, importance: Any, level: Any):
    """TRL multiplies a loss at ratio 1 by the weights of learner over sampler, which is our `reinforce`: the
    same gradient, though not the same value (TRL counts 1 where we count log pi)."""
    policy = learner_of(trainer)
    samples = sampled_near(policy, dialogues(8))
    flat = policy(pack(samples))
    flat = PolicyOutput(
        logprobs=flat.logprobs.detach().requires_grad_(),
        entropies=flat.entropies.requires_grad_(),
        values=torch.zeros(0),
    )
    low = 0.7 if importance == "masked" else 0.0
    trainer.use_vllm = True
    try:
        inputs = trl_inputs(
            trainer,
            samples,
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=low,
            vllm_importance_sampling_clip_max=1.5,
        )
        settings = {**TRL_CLIPS, "loss_type": "dapo", "delta": None, "importance_sampling_level": "token"}
        expected = trl_loss(trainer, inputs, flat, **settings)
    finally:
        trainer.use_vllm = False
    bounds: dict[str, float] = {"low": low, "high": 1.5} if importance == "masked" else {"high": 1.5}
    config = LearnerConfig.model_validate(
        {"loss": "reinforce", "importance": {"type": importance, "level": level, **bounds}}
    )
    agree(our_loss(samples, flat, config), expected, value=False)
    ratios = inputs["importance_sampling_ratio"]
    assert (ratios == (0.0 if importance == "masked" else 1.5)).any() and len(ratios.unique()) > 2


def learner_of(trainer: Any) -> Policy:
    """Our policy with the weights of TRL's model."""
    policy = tiny_policy()
    policy.model.load_state_dict(trainer.model.state_dict())
    return policy


def sampled_near(policy: Policy, samples: list[TrainingSample]) -> list[TrainingSample]:
    """The samples with behavior logprobs near what the policy says itself."""
    rng, done = np.random.default_rng(9), []
    for sample in samples:
        own = policy(pack([sample])).logprobs.detach().numpy()
        near = own + rng.normal(scale=0.2, size=len(own))
        done.append(replace(sample, behavior_logprobs=near.astype(np.float32)))
    return done


def test_a_whole_step_has_trls_gradient_by_every_weight(trainer: Any):
    """TRL pads and we pack: its own forward pass, loss and backward against ours, 1e-6 on each weight. TRL's
    head sums in float32 whatever the model's format is, hence no less."""
    policy = learner_of(trainer)
    samples = sampled_near(policy, dialogues(10))
    inputs = sampled(trl_inputs(trainer, samples, **NO_SAMPLER))
    for name, value in {**TRL_CLIPS, **LOSSES["ppo"][1], "loss_type": "grpo"}.items():
        setattr(trainer if hasattr(trainer, name) else trainer.args, name, value)
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()
    config = LearnerConfig(**LOSSES["ppo"][0], aggregation=MeanConfig(type="sequence_mean"))
    taken, weights = select_and_weigh(samples, config=config, gym_shares={}, seed=0)
    num_tokens = sum(sample.num_loss_tokens for sample in taken)
    batch: MicroBatch = pack(taken, weights=weights)
    sums = grpo_sums(batch, policy(batch), config=config, num_tokens=num_tokens, policy_version=0)
    sums["loss"].backward()
    assert sums["loss"].item() == pytest.approx(expected.item(), rel=0, abs=CLOSE)
    compare_weights(policy, trainer.model)


def compare_weights(policy: Policy, model: torch.nn.Module) -> None:
    expected = dict(model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        gradient = expected[name].grad
        assert parameter.grad is not None and gradient is not None
        assert torch.allclose(parameter.grad, gradient, rtol=0, atol=CLOSE), name
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) > 1e3 * CLOSE


def test_the_sft_loss_is_the_cross_entropy_of_transformers_and_of_trl():
    """Both take a padded batch with labels of -100 outside the loss, and the number of labels of a whole
    step."""
    from trl.trainer.utils import add_fused_lm_head

    samples, num_tokens = dialogues(11), 1000
    policy = tiny_policy()
    batch = pack(samples)
    ours = sft_sums(batch, policy(batch), num_tokens=num_tokens)["loss"]
    ours.backward()
    ids = padded([torch.from_numpy(sample.token_ids).long() for sample in samples], 0)
    labels = padded(
        [torch.from_numpy(np.where(loss_mask(s), s.token_ids, -100)).long() for s in samples], -100
    )
    seen = padded([torch.ones(sample.num_tokens) for sample in samples], 0)
    for fused in ({}, {"fused_lm_head": True}):
        model = tiny_model().double()
        add_fused_lm_head(model)
        theirs = model(
            input_ids=ids, attention_mask=seen, labels=labels, num_items_in_batch=num_tokens, **fused
        ).loss
        theirs.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=0, abs=CLOSE)
        compare_weights(policy, model)


def padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
