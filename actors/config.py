"""Configuration of engines and rollouts. Imports neither torch, ray nor vllm."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

OnTimeout = Literal["mask", "resume"]
WeightTransport = Literal["shared_memory", "nccl", "ipc"]
NO_CONTEXT_LIMIT = 2**24
"""Context limit, in tokens, of a policy that reads messages instead of tokens."""


class EngineConfig(BaseModel):
    """The policy engines that sample for the rollout actors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_engines: int = Field(default=1, ge=1)
    """Engines that share the load; each holds a full copy of the policy."""
    max_engines: int | None = Field(default=None, ge=1)
    """Autoscaling limit: engines are added, up to this number, while they are the bottleneck. Unset: fixed at
    num_engines."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which one engine splits the policy."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Number format of the engine's weights. On CPU float32 is exact and no slower; on GPU use bfloat16."""
    max_model_len: int = Field(default=2048, ge=16)
    """Longest sequence in tokens, prompt and completion together."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that one engine samples at the same time; further requests are queued."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory of the KV cache on CPU, in GiB. On GPU `gpu_memory_utilization` decides."""
    gpu_memory_utilization: float = Field(default=0.8, gt=0, le=1)
    """Share of a GPU's memory that one engine takes."""
    num_threads: int = Field(default=0, ge=0)
    """CPU threads of an engine; 0: half of the cores."""
    weight_transport: WeightTransport | Literal["auto"] = "auto"
    """How weights are sent from the learners. shared_memory: a file in this machine's memory, for CPUs;
    between machines through Ray's object store. nccl: GPU to GPU. ipc: between processes that share a GPU.
    auto: by the placement of engines and learners."""
    start_timeout_s: float = Field(default=300.0, gt=0)
    """Timeout for an engine to start and to receive its first weights."""
    complete_timeout_s: float = Field(default=300.0, gt=0)
    """Timeout of a completion, and for the replacement of a dead engine."""

    @model_validator(mode="after")
    def _engines_grow(self) -> Self:
        _check_growth("engines", num=self.num_engines, most=self.max_engines)
        return self


class RolloutConfig(BaseModel):
    """Settings of rollouts, the same in training and evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_actors: int = Field(default=1, ge=1)
    """Rollout actors, each with one event loop."""
    max_actors: int | None = Field(default=None, ge=1)
    """Autoscaling limit: rollout actors are added, up to this number, while they are the bottleneck. Unset:
    fixed at num_actors."""
    cpus_per_actor: float = Field(default=0.1, gt=0)
    """CPUs that Ray reserves for each actor. Small if all share one machine; about 1 on separate nodes, so
    that an autoscaler starts enough nodes."""
    dialogues_per_actor: int = Field(default=64, ge=1)
    """Maximum number of concurrent dialogues of an actor; fewer if that keeps the engines busy."""
    group_size: int = 8
    """Trajectories of a group (one task); at least 2."""
    max_turns: int | None = Field(default=None, ge=1)
    """Turn budget of a dialogue; all turns are executed. Unset: the gym's own: 16, tau 30."""
    max_completion_tokens: int = Field(default=96, ge=1)
    """Maximum number of tokens that the policy samples in one turn."""
    temperature: float = Field(default=1.0, ge=0.01)
    """Sampling temperature; 1 samples from the policy as it is. vLLM samples at no less than 0.01."""

    extra_dialogues: int = Field(default=0, ge=0)
    """Extra dialogues started per training group beyond `group_size`; once `group_size` have ended, the rest
    is cancelled. This favours short dialogues."""
    dialogue_timeout_s: float | None = Field(default=None, gt=0)
    """Timeout of a dialogue, handled as `on_timeout` says. Unset: no limit."""
    on_timeout: OnTimeout = "mask"
    """mask: the dialogue is cancelled, neither scored nor trained. resume: it yields its slot to waiting
    dialogues and continues later with the weights that are live then."""
    group_timeout_s: float = Field(default=1800.0, gt=0)
    """Timeout of a group at one rollout actor, after which the group is assigned to another."""

    @model_validator(mode="after")
    def _actors_grow(self) -> Self:
        _check_growth("actors", num=self.num_actors, most=self.max_actors)
        return self

    @property
    def num_dialogues(self) -> int:
        """Dialogues of one training group."""
        return self.group_size + self.extra_dialogues

    @field_validator("group_size")
    @classmethod
    def _group_has_an_advantage(cls, group_size: int) -> int:
        if group_size < 2:
            raise ValueError("a group needs at least 2 trajectories, or every advantage is zero")
        return group_size


def _check_growth(kind: str, *, num: int, most: int | None) -> None:
    if most is not None and most < num:
        raise ValueError(
            f"max_{kind}={most} is less than num_{kind}={num}: raise it, or leave it out for a fixed number"
        )
