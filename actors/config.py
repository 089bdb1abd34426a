"""Configuration of the acting side. Light: imports neither torch, ray nor vllm."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class EngineConfig(BaseModel):
    """The policy engines that sample for the rollout actors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_engines: int = Field(default=1, ge=1)
    """Engines that share the load; each holds a whole copy of the policy."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which one engine splits the policy."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Number format of the engine's weights. On CPU float32 is exact and no slower; on GPU take bfloat16."""
    max_model_len: int = Field(default=2048, ge=16)
    """Longest sequence in tokens, prompt and completion together."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that one engine samples at the same time; more of them wait."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory of the KV cache on CPU, in GiB. On GPU `gpu_memory_utilization` decides."""
    gpu_memory_utilization: float = Field(default=0.8, gt=0, le=1)
    """Share of a GPU's memory that one engine takes."""
    num_threads: int = Field(default=0, ge=0)
    """CPU threads that one engine computes with; 0 takes half of the cores."""
    start_timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait for an engine to start, and for its first weights."""
    complete_timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait for one completion."""


class RolloutConfig(BaseModel):
    """How dialogues are run; training and evaluation take the same settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_actors: int = Field(default=1, ge=1)
    """Rollout actors, each with one event loop."""
    dialogues_per_actor: int = Field(default=64, ge=1)
    """Dialogues that one actor runs at the same time."""
    group_size: int = 8
    """Trajectories of each task, compared with each other."""
    max_turns: int | None = Field(default=None, ge=1)
    """Turns after which a dialogue ends; all of them are executed. Not given: the gym's own: 16, tau 30."""
    max_completion_tokens: int = Field(default=96, ge=1)
    """Most tokens that the policy may sample in one turn."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; 1 samples from the policy as it is."""

    @field_validator("group_size")
    @classmethod
    def _group_has_an_advantage(cls, group_size: int) -> int:
        if group_size < 2:
            raise ValueError("a group needs at least 2 trajectories, or every advantage is zero")
        return group_size
