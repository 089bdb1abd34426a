"""Config section `learner`: learner processes, loss, advantages, optimizer, LoRA, precision. Light: imports
neither torch, ray nor transformers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learners.advantages.estimators import CreditRule
from learners.losses.policy_loss import POLICY_LOSSES
from learners.sft_config import SftConfig

ScoreName = Literal["sum", "mean", "reward_to_go", "max", "last"]
CreditName = Literal["naive", "equalized", "reward_to_go", "exponential"]


class TinyPolicyConfig(BaseModel):
    """The tiny Qwen3-architecture policy that is created if `policy.path` is unset."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hidden_size: int = Field(default=128, ge=16)
    """Width of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; the same number for keys and values."""
    head_dim: int = Field(default=32, multiple_of=32, gt=0)
    """Width of one head."""
    intermediate_size: int = Field(default=384, ge=16)
    """Width of the MLP."""
    vocab_size: int = Field(default=1536, ge=512)
    """Tokens of the tokenizer that is trained on the gyms' language, special tokens included."""


class GymCreditConfig(BaseModel):
    """One gym's own credit; what is not given is as in `learner`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    advantage: str | None = None
    """As `learner.advantage`."""
    trajectory_score: ScoreName | None = None
    """As `learner.trajectory_score`."""
    turn_credit: CreditName | None = None
    """As `learner.turn_credit`."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """As `learner.gamma`."""
    gae_lambda: float | None = Field(default=None, ge=0, le=1)
    """As `learner.gae_lambda`."""


class LearnerConfig(BaseModel):
    """The learner group, its GRPO loss and its optimizer (AdamW)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_learners: int = Field(default=1, ge=1)
    """Learner processes; more than one share the policy's weights between them (FSDP2)."""
    num_gpus_per_learner: int = Field(default=0, ge=0, le=1)
    """GPUs of each learner; 0 learns on the CPU."""
    num_threads: int = Field(default=0, ge=0)
    """CPU threads that one learner computes with; 0 divides the machine's cores over the learners."""
    lr: float = Field(default=1e-3, gt=0)
    """GRPO's learning rate, after warm-up. The default suits the tiny policy; take about 1e-6 for a
    pretrained one."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps over which the learning rate rises from zero, in each stage."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients whose global norm is larger are scaled down to it."""
    loss: str = "ppo"
    """The policy loss: ppo, gspo and turn clip the ratio of a token, a sequence or a turn; cispo bounds it as
    a weight; sapo fades with it; reinforce has none. See docs/losses.md."""
    clip_low: float | None = Field(default=None, gt=0, lt=1)
    """ppo, gspo and turn clip the probability ratio at 1 - clip_low. Not given: the loss's own, 0.2 for ppo,
    0.003 for turn, 0.0003 for gspo, whose ratios are means of many tokens."""
    clip_high: float | None = Field(default=None, gt=0)
    """ppo, gspo and turn clip the probability ratio at 1 + clip_high; cispo's weights go no further. Not
    given: 0.28 for ppo and cispo, 0.004 for turn, 0.0004 for gspo."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Where the advantage is negative, the ratio counts no more than this (dual-clip PPO, arXiv
    1912.09729). Only ppo has it."""
    sapo_positive: float = Field(default=1.0, gt=0)
    """Temperature of sapo's gate where the advantage is positive: the larger, the sooner the gradient
    fades."""
    sapo_negative: float = Field(default=1.05, gt=0)
    """Temperature of sapo's gate where the advantage is negative."""
    importance: Literal["none", "truncated", "masked"] = "none"
    """Weights against the engine's probabilities: truncated bounds reinforce's ratio by importance_high;
    masked leaves out what lies outside importance_low and importance_high, with any loss."""
    importance_level: Literal["token", "turn", "sequence"] = "token"
    """Whose ratio is bounded or masked: of each token, or the product over its turn or sequence."""
    importance_low: float = Field(default=0.5, ge=0, le=1)
    """A ratio below this is masked."""
    importance_high: float = Field(default=5.0, ge=1)
    """A ratio above this is masked, or truncated to it."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """How much of the policy's mean entropy is added to the objective; where there is a target, what it
    begins with."""
    entropy_target: float = Field(default=0.0, ge=0)
    """Nats: the entropy coefficient rises below this and falls above it, where it does not count. 0 leaves it
    as it is."""
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    """How the KL to a reference model is estimated: k1 is taken from the advantages, k2 and k3 are added to
    the loss. none loads no reference. See docs/losses.md."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """How much the KL counts; 0 only measures it."""
    reference: str = ""
    """The KL's reference model: a folder or a hub name. Not given: the policy as GRPO began, after the cold
    start."""
    truncated: Literal["keep", "mask"] = "keep"
    """mask: a trajectory that was cut off, by the turns or the tokens it may take, counts in its group's
    baseline but is not learned from (DAPO's overlong filtering, arXiv 2503.14476)."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length", "token_budget"] = "token_mean"
    """How tokens add up to a loss: all alike; each trajectory alike; by a constant length for each trajectory
    (Dr. GRPO); by a fixed number of tokens that a step takes (C3PO)."""
    aggregation_tokens: int = Field(default=0, ge=0)
    """constant_length: tokens that a trajectory counts as, best the longest allowed. token_budget: loss
    tokens of a step; trajectories beyond them are left out."""
    per_gym_denominator: bool = True
    """Aggregate each gym by itself and add the gyms up by `gyms.weights`, so that mixing gyms changes no
    other gym's gradient; false: all tokens of a step as one."""
    trajectory_score: ScoreName = "reward_to_go"
    """What a group compares: the sum of a trajectory's turn rewards, their mean, the discounted sum seen from
    its first turn, the best, or the last. Those that credit each turn by itself, such as turn_loo and
    turn_gae, have no use for it."""
    turn_credit: CreditName = "equalized"
    """How a trajectory's advantage is spread over its turns: alike, or by each turn's reward, reward-to-go or
    exponentially mapped reward. Estimators that credit each turn themselves take equalized."""
    gamma: float = Field(default=0.95, gt=0, le=1)
    """Discount per turn of `reward_to_go`: less than 1 prefers the quicker of two equal successes."""
    advantage: str = "grpo"
    """grpo divides by the group's standard deviation; dr_grpo only subtracts its mean; rloo subtracts the
    others' mean. turn_mean, turn_loo, mt_grpo, gigpo and igpo credit each turn by what came of it;
    turn_gae subtracts what a critic expected, which is trained beside the policy; userrl_compat and
    userrl_printed are for comparison. See docs/credit.md."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1)
    """turn_gae: how far an advantage looks past the critic's word for the next turn; 1 waits for the rewards
    themselves."""
    critic_lr: float = Field(default=1e-3, gt=0)
    """turn_gae: the critic's learning rate, after warm-up. The critic is a small head of its own, so that the
    default suits any policy."""
    information_gain: Literal["none", "gold_answer", "masked_feedback"] = "none"
    """What a turn's feedback was worth, added to the turn's reward: how much likelier it made the gold
    answer, or what the policy said next, against the same dialogue with that feedback masked."""
    information_gain_weight: float = Field(default=1.0, gt=0)
    """How much a turn's gain counts beside its reward. IGPO's gold_answer takes 1, InfoPO's masked_feedback
    0.1."""
    by_gym: dict[str, GymCreditConfig] = {}
    """Gyms whose credit differs, such as tau = { trajectory_score = "last" }."""
    max_logprob_gap: float = Field(default=0.02, gt=0)
    """Most that engine and learner may differ on the logprob of a sampled token, in the mean of a step,
    before the run stops."""
    micro_batch_tokens: int = Field(default=8192, ge=16)
    """Most tokens that one forward pass takes; memory grows with it, gradients do not depend on it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of matrix products; the weights themselves stay float32. Match the engine's."""
    lora_rank: int = Field(default=0, ge=0)
    """Train adapters of this rank beside the decoder's linear layers (LoRA), which wants about ten times the
    learning rate; 0 trains all weights."""
    lora_alpha: int = Field(default=32, gt=0)
    """An adapter's product is scaled by lora_alpha / lora_rank."""
    recompute_activations: bool = False
    """Keep only each layer's input for the backward pass: far less memory, a third more work."""

    @property
    def has_critic(self) -> bool:
        """Whether some gym's advantage asks for one."""
        return any(self.credit_of(gym).estimator.asks_critic for gym in ("", *self.by_gym))

    @property
    def takes_kl_from_advantages(self) -> bool:
        """Whether the loss takes other advantages than the estimator gave."""
        return self.kl == "k1" and self.kl_coefficient > 0

    @property
    def clip(self) -> tuple[float, float]:
        """How far below and above 1 a ratio is clipped."""
        low, high = POLICY_LOSSES[self.loss].clip
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    def credit_of(self, gym: str) -> CreditRule:
        """How this gym's rewards become advantages."""
        own = self.by_gym.get(gym, GymCreditConfig())
        return CreditRule(
            advantage=own.advantage or self.advantage,
            trajectory_score=own.trajectory_score or self.trajectory_score,
            turn_credit=own.turn_credit or self.turn_credit,
            gamma=own.gamma or self.gamma,
            gae_lambda=self.gae_lambda if own.gae_lambda is None else own.gae_lambda,
        )

    @model_validator(mode="after")
    def _credit_fits(self) -> "LearnerConfig":
        for gym in ("", *self.by_gym):
            where = f"by_gym.{gym}: " if gym else ""
            self.credit_of(gym).check(where=where)
        return self

    @model_validator(mode="after")
    def _loss_settings_fit(self) -> "LearnerConfig":
        if self.loss not in POLICY_LOSSES:
            raise ValueError(f"loss={self.loss}: unknown: take one of {', '.join(POLICY_LOSSES)}")
        if self.importance == "truncated" and POLICY_LOSSES[self.loss].holds_ratio:
            raise ValueError(
                f"importance=truncated: loss={self.loss} holds the ratio already and would count it twice: "
                "take loss=reinforce, or importance=masked"
            )
        if self.kl == "none" and (self.kl_coefficient or self.reference):
            key = "kl_coefficient" if self.kl_coefficient else "reference"
            raise ValueError(
                f"{key}={getattr(self, key)!r}: kl=none has no reference model to use it on: take kl=k1, k2 "
                "or k3, or leave it out"
            )
        if (self.aggregation in ("constant_length", "token_budget")) != (self.aggregation_tokens > 0):
            raise ValueError(
                f"aggregation_tokens={self.aggregation_tokens}: aggregation={self.aggregation} "
                + ("takes none: leave it out" if self.aggregation_tokens else "divides by it: set it above 0")
            )
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSettings:
    """All that a learner is told: `AlgorithmConfig.learner_settings` holds one."""

    policy_folder: str
    """Hugging Face causal LM: a folder or a hub name. Every learner reads the same one."""
    learner: LearnerConfig
    sft: SftConfig
    temperature: float
    """Of the engine's sampling: logprobs are those of the distribution that was sampled from."""
    seed: int
    """Run seed; fixes batches of demonstrations and the packing."""
    reference_folder: str = ""
    """Where the KL's reference model lies: `learner.reference`'s folder, or the one that the learners write
    as GRPO begins, which all of them must be able to reach."""
    gym_shares: Mapping[str, float] = field(default_factory=dict)
    """Part of the loss of each gym that is trained on, for `per_gym_denominator`; together 1. Empty: a step
    is one part."""
