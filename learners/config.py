"""Config section `learner`: learner processes, loss, advantages, optimizer, LoRA, precision. Light: imports
neither torch, ray nor transformers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from learners.advantages.config import ADVANTAGE_CONFIGS, AdvantageConfig, FrozenConfig, SpreadConfig
from learners.advantages.estimators import CreditRule
from learners.loss_config import (
    AggregationConfig,
    EntropyConfig,
    ImportanceConfig,
    KlConfig,
    LossConfig,
    MeanConfig,
    NoImportanceConfig,
    NoKlConfig,
    PpoConfig,
)
from learners.sft_config import SftConfig


class TinyPolicyConfig(FrozenConfig):
    """The tiny Qwen3-architecture policy that is created if `policy.path` is unset."""

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


class LearnerConfig(FrozenConfig):
    """The learner group, its GRPO loss and its optimizer (AdamW)."""

    num_learners: int = Field(default=1, ge=1)
    """Number of learner processes; several shard the policy's weights (FSDP2)."""
    num_gpus_per_learner: int = Field(default=0, ge=0, le=1)
    """GPUs of each learner; 0: the CPU is used."""
    num_threads: int = Field(default=0, ge=0)
    """CPU threads of each learner; 0: the machine's cores divided by the number of learners."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of GRPO after warm-up. The default suits the tiny policy; use about 1e-6 for a
    pretrained one."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps of linear warm-up at the start of GRPO."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients whose global norm is larger are scaled down to it."""
    loss: LossConfig = PpoConfig()
    """The policy loss: ppo, gspo and turn clip the ratio of a token, a sequence or a turn; cispo bounds it as
    a weight; sapo fades the gradient with it; reinforce has no ratio. See docs/losses.md."""
    importance: ImportanceConfig = NoImportanceConfig()
    """Importance weights against the engine's probabilities: truncated bounds reinforce's ratio; masked
    leaves out tokens whose ratio is outside two bounds, with any loss."""
    entropy: EntropyConfig = EntropyConfig()
    kl: KlConfig = NoKlConfig()
    """Estimator of the KL to a reference model: k1 is subtracted from the advantages, k2 and k3 are added to
    the loss. none loads no reference. See docs/losses.md."""
    truncated: Literal["keep", "mask"] = "keep"
    """mask: a trajectory that reached the limit of turns or tokens counts in its group's baseline but is left
    out of the loss (DAPO's overlong filtering, arXiv 2503.14476)."""
    aggregation: AggregationConfig = MeanConfig()
    """How tokens add up to a loss: the mean over tokens or over trajectories; divided by a constant length
    for each trajectory (Dr. GRPO), or by a fixed number of tokens per step (C3PO)."""
    per_gym_denominator: bool = True
    """true: tokens are aggregated within each gym and the gyms added up by `gyms.weights`, so that no gym
    changes another gym's gradient. false: all tokens of a step are aggregated together."""
    advantage: AdvantageConfig = SpreadConfig()
    """Advantage estimator: grpo divides by the group's standard deviation; dr_grpo only subtracts its mean;
    rloo subtracts the others' mean. turn_mean, turn_loo, mt_grpo, gigpo and igpo credit each turn by its
    consequences; turn_gae subtracts a critic's value; userrl_compat and userrl_printed are for comparison.
    See docs/credit.md."""
    by_gym: dict[str, AdvantageConfig] = Field(default={})
    """Advantage estimators of single gyms, such as tau = { trajectory_score = "last" }. The keys are those of
    `learner.advantage`, which also fills in those left out."""
    information_gain: Literal["none", "gold_answer", "masked_feedback"] = "none"
    """Information-gain reward of a turn, added to its reward: how much its feedback raised the probability of
    the gold answer, or that of the policy's next completion compared with the feedback masked."""
    information_gain_weight: float = Field(default=1.0, gt=0)
    """Weight of a turn's gain in its reward. IGPO uses 1 for gold_answer, InfoPO 0.1 for masked_feedback."""
    max_logprob_gap: float = Field(default=0.02, gt=0)
    """Limit of the mean difference between the logprobs of engine and learner in a step. The run stops above
    it."""
    micro_batch_tokens: int = Field(default=8192, ge=16)
    """Maximum number of tokens of one forward pass; memory grows with it, gradients do not depend on it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of matrix products; the weights stay float32. Should be the engine's."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of LoRA adapters on the decoder's linear layers, which need about ten times the learning rate. 0:
    all weights are trained."""
    lora_alpha: int = Field(default=32, gt=0)
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    recompute_activations: bool = False
    """Keep only each layer's input for the backward pass: far less memory, a third more compute."""

    @property
    def critic_lrs(self) -> set[float]:
        """Learning rate of the critic, which all gyms share; empty if no gym's advantage needs a critic."""
        advantages = (self.advantage, *self.by_gym.values())
        return {advantage.critic_lr for advantage in advantages if advantage.type == "turn_gae"}

    @property
    def reference(self) -> str:
        """The KL's reference model as configured; empty if there is none, or if it is the initial policy."""
        return "" if self.kl.type == "none" else self.kl.reference

    @property
    def subtracts_kl(self) -> bool:
        """Whether the KL is subtracted from the advantages, so that the loss uses others than estimated."""
        return self.kl.type == "k1" and self.kl.coefficient > 0

    def credit_of(self, gym: str) -> CreditRule:
        """How this gym's rewards become advantages."""
        own = self.by_gym.get(gym, self.advantage).model_dump(exclude={"critic_lr"})
        keys = SpreadConfig().model_dump() | own  # a rule has a score and a credit even if its type has none
        return CreditRule(advantage=keys.pop("type"), **keys)

    @field_validator("by_gym", mode="before")
    @classmethod
    def _missing_keys_are_those_of_advantage(cls, by_gym: object, info: ValidationInfo) -> object:
        shared = info.data.get("advantage")
        if not isinstance(by_gym, Mapping) or not isinstance(shared, BaseModel):
            return by_gym
        return {gym: _filled_in(own, shared.model_dump()) for gym, own in by_gym.items()}

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> "LearnerConfig":
        if self.importance.type == "truncated" and self.loss.has_ratio:
            raise ValueError(
                f"importance=truncated: loss={self.loss.type} has the ratio already and would count it "
                "twice: take loss=reinforce, or importance=masked"
            )
        if len(self.critic_lrs) > 1:
            raise ValueError(
                f"critic_lr={max(self.critic_lrs)}: one critic serves all gyms, and another gym has "
                f"{min(self.critic_lrs)}: give the same to all"
            )
        return self


def _filled_in(own: object, shared: Mapping[str, object]) -> object:
    """A gym's table with the keys that it leaves out and its type has."""
    own = {"type": own} if isinstance(own, str) else own
    if not isinstance(own, Mapping):
        return own
    kind = ADVANTAGE_CONFIGS.get(str(own.get("type", shared["type"])))
    return own if kind is None else {key: shared[key] for key in shared if key in kind.model_fields} | {**own}


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSettings:
    """Settings of a learner process, passed as `AlgorithmConfig.learner_settings`."""

    policy_folder: str
    """Hugging Face causal LM: a folder or a hub name. Every learner reads the same one."""
    learner: LearnerConfig
    sft: SftConfig
    temperature: float
    """Sampling temperature of the engine: logprobs are those of the distribution that was sampled from."""
    seed: int
    """Run seed; fixes batches of demonstrations and the packing."""
    reference_folder: str = ""
    """Folder of the KL's reference model: that of `learner.kl.reference`, or the one that the learners write
    at the start of GRPO, which all of them must be able to reach."""
    gym_shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the loss of each trained gym, for `per_gym_denominator`; they add up to 1. Empty: a step is
    weighed as a whole."""
