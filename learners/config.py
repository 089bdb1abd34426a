"""Configuration of the learning side. Light: imports neither torch, ray nor transformers."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TinyPolicyConfig(BaseModel):
    """The small Qwen3-architecture policy that is made where no `policy.path` is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hidden_size: int = Field(default=128, ge=16)
    """Width of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; as many for keys and values."""
    head_dim: int = Field(default=32, multiple_of=32, gt=0)
    """Width of one head."""
    intermediate_size: int = Field(default=384, ge=16)
    """Width of the MLP."""
    vocab_size: int = Field(default=1536, ge=512)
    """Tokens of the tokenizer that is trained on the gyms' language, special tokens included."""


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
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO clips the probability ratio at 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """PPO clips the probability ratio at 1 + clip_high."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Where the advantage is negative, the ratio counts no more than this (dual-clip PPO, arXiv
    1912.09729)."""
    trajectory_score: Literal["sum", "reward_to_go"] = "reward_to_go"
    """What a group compares: the sum of a trajectory's turn rewards, or the discounted one seen from its
    first turn."""
    gamma: float = Field(default=0.95, gt=0, le=1)
    """Discount per turn of `reward_to_go`: less than 1 prefers the quicker of two equal successes."""
    advantage: Literal["grpo", "dr_grpo"] = "grpo"
    """grpo divides by the group's standard deviation; dr_grpo (arXiv 2503.20783) only subtracts its mean."""
    max_logprob_gap: float = Field(default=0.02, gt=0)
    """Most that engine and learner may differ on the logprob of a sampled token, in the mean of a step,
    before the run stops."""
    micro_batch_tokens: int = Field(default=8192, ge=16)
    """Most tokens that one forward pass takes; memory grows with it, gradients do not depend on it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of matrix products; the weights themselves stay float32. Match the engine's."""
    recompute_activations: bool = False
    """Keep only each layer's input for the backward pass: far less memory, a third more work."""


class SftConfig(BaseModel):
    """The cold start: imitation of scripted experts, token-mean cross-entropy on their turns."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    demonstrator: Literal["expert", "hasty"] = "expert"
    """Who is imitated: the expert at its best, or in a hurry, acting at times before it has asked enough."""
    num_demonstrations: int = Field(default=600, ge=0)
    """Dialogues of the scripted experts, over all gyms by their weights; 0 leaves the stage out."""
    num_epochs: float = Field(default=2.0, gt=0)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=16, ge=1)
    """Samples that one optimizer step takes."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate after warm-up. The default suits the tiny policy; take about 1e-5 for a pretrained
    one."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises from zero."""


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
