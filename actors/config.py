"""Configuration of the acting side. Light: imports neither torch, ray nor vllm."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

OnTimeout = Literal["mask", "resume"]
WeightTransport = Literal["shared_memory", "nccl", "ipc"]


class EngineConfig(BaseModel):
    """The policy engines that sample for the rollout actors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_engines: int = Field(default=1, ge=1)
    """Engines that share the load; each holds a whole copy of the policy."""
    max_engines: int | None = Field(default=None, ge=1)
    """Where all others wait for them their number grows up to this one. Not given: it stays as it is."""
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
    weight_transport: WeightTransport | Literal["auto"] = "auto"
    """How weights come from the learners. shared_memory: a file in this machine's memory, for CPUs; across
    machines it travels through Ray's object store. nccl: GPU to GPU. ipc: between processes that share a GPU.
    auto: by where engines and learners lie."""
    start_timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait for an engine to start, and for its first weights."""
    complete_timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait for one completion, and for an engine in the place of one that died."""

    @model_validator(mode="after")
    def _engines_grow(self) -> Self:
        if self.max_engines is not None and self.max_engines < self.num_engines:
            raise ValueError(
                f"max_engines={self.max_engines} is less than num_engines={self.num_engines}: raise it, or "
                "leave it out for a fixed number"
            )
        return self


class RolloutConfig(BaseModel):
    """How dialogues are run; training and evaluation take the same settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_actors: int = Field(default=1, ge=1)
    """Rollout actors, each with one event loop."""
    max_actors: int | None = Field(default=None, ge=1)
    """Where the rest waits for dialogues their number grows up to this one. Not given: it stays as it is."""
    cpus_per_actor: float = Field(default=0.1, gt=0)
    """CPUs that Ray reserves for each. Small where all share a machine; on nodes of their own give what an
    actor needs, about 1, so that an autoscaler starts as many nodes as are needed."""
    dialogues_per_actor: int = Field(default=64, ge=1)
    """Most dialogues that one actor runs at the same time; fewer where they keep the engines busy."""
    group_size: int = 8
    """Trajectories of each task, compared with each other: at least 2."""
    max_turns: int | None = Field(default=None, ge=1)
    """Turns after which a dialogue ends; all of them are executed. Not given: the gym's own: 16, tau 30."""
    max_completion_tokens: int = Field(default=96, ge=1)
    """Most tokens that the policy may sample in one turn."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; 1 samples from the policy as it is."""

    extra_dialogues: int = Field(default=0, ge=0)
    """Dialogues of each training group begun beyond `group_size`; once `group_size` have ended, the rest is
    cut. What is kept is quick rather than long."""
    dialogue_timeout_s: float | None = Field(default=None, gt=0)
    """Longest time of one dialogue, after which `on_timeout` says what becomes of it. Not given: no limit."""
    on_timeout: OnTimeout = "mask"
    """mask: the dialogue is cut, and neither scored nor trained. resume: it lets others who wait for a place
    in its actor go first, then goes on, with whatever weights are live by then."""
    group_timeout_s: float = Field(default=1800.0, gt=0)
    """A group that has been with a rollout actor for longer is taken to be lost and given to another."""

    @model_validator(mode="after")
    def _actors_grow(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.num_actors:
            raise ValueError(
                f"max_actors={self.max_actors} is less than num_actors={self.num_actors}: raise it, or leave "
                "it out for a fixed number"
            )
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
