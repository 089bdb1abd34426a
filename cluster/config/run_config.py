"""Root config of a run: the config sections of all rooms, and the rules that span several of them.

Imports no torch, Ray, vLLM or transformers, so that a recipe is checked at once. The docstring under a field
is its help text."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from actors.config import EngineConfig, RolloutConfig
from cluster.config.gyms import GymsConfig, check_name
from cluster.config.nodes import NodesConfig
from cluster.config.recipe import apply_overrides, read_toml, to_toml, validate
from learners.advantages.estimators import ADVANTAGES
from learners.config import LearnerConfig, TinyPolicyConfig
from learners.sft_config import SftConfig
from rewards.config import RewardConfig
from simulators.config import SimulatorConfig
from simulators.plug_ins import module_of

FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RunNameConfig(BaseModel):
    """Identity of the run."""

    model_config = FROZEN

    name: str = "run"
    """The run's name: its folder's name and its name in W&B."""
    folder: str = "runs"
    """Folder that holds the run folders."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed from which every random draw of the run derives."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("a run's name is a folder name: use letters, digits, '.', '_' and '-' only")
        return name


class PolicyConfig(BaseModel):
    """The model that is trained."""

    model_config = FROZEN

    path: str | None = None
    """A Hugging Face causal LM: a folder or a hub name. Unset: a tiny policy with random weights."""
    tiny: TinyPolicyConfig = TinyPolicyConfig()


class RayConfig(BaseModel):
    """The Ray cluster."""

    model_config = FROZEN

    address: str | None = None
    """Address of a Ray cluster to join: HOST:PORT, ray://HOST:PORT, or auto. Unset: starts Ray on this
    machine."""
    nodes: NodesConfig = NodesConfig()


class BufferConfig(BaseModel):
    """The buffer of scored groups."""

    model_config = FROZEN

    groups_per_step: int = Field(default=8, ge=1)
    """Groups per optimizer step."""
    max_off_policy_steps: int = Field(default=0, ge=0)
    """Maximum age of a trained token in policy versions; 0 is synchronous training."""


class GrpoRunConfig(BaseModel):
    """The GRPO stage; its loss is configured in `learner`."""

    model_config = FROZEN

    num_steps: int = Field(default=60, ge=0)
    """Optimizer steps of GRPO."""


class EvaluationConfig(BaseModel):
    """Scores on held-out tasks: before SFT, after SFT, after GRPO. Scores on validation tasks in between."""

    model_config = FROZEN

    tasks_per_gym: int = Field(default=200, ge=1)
    """Held-out tasks per gym, one dialogue each."""
    every_steps: int = Field(default=0, ge=0)
    """GRPO steps between two validations, which choose the best checkpoint; 0: never."""
    validation_tasks_per_gym: int = Field(default=25, ge=1)
    """Validation tasks per trained gym; disjoint from training and held-out tasks."""


class CheckpointConfig(BaseModel):
    """Checkpoints, from which a stopped run resumes."""

    model_config = FROZEN

    every_steps: int = Field(default=10, ge=1)
    """GRPO steps between two checkpoints; another is saved when the run ends or is stopped."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints kept on disk, in addition to the best one if `evaluation.every_steps` is
    set."""
    mirror: str = ""
    """A location on any pyarrow or fsspec file system, such as s3://bucket/runs, to which new checkpoints are
    copied; a run whose folder is lost resumes from there."""


class TrackingConfig(BaseModel):
    """Weights & Biases."""

    model_config = FROZEN

    project: str = "userrl"
    """The W&B project."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if a W&B key is found, else offline."""
    dialogues_per_step: int = Field(default=8, ge=0)
    """Dialogues of each step and evaluation in W&B tables: whole groups, at least one; 0: none."""


class RunConfig(BaseModel):
    """The complete config of a run: a recipe with every default filled in."""

    model_config = FROZEN

    run: RunNameConfig = RunNameConfig()
    policy: PolicyConfig = PolicyConfig()
    ray: RayConfig = RayConfig()
    gyms: GymsConfig = GymsConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    reward: RewardConfig = RewardConfig()
    buffer: BufferConfig = BufferConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoRunConfig = GrpoRunConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _rooms_fit_each_other(self) -> "RunConfig":
        rollout, context = self.rollout, self.engine.max_model_len
        if rollout.max_completion_tokens >= context:
            raise ValueError(
                f"rollout.max_completion_tokens={rollout.max_completion_tokens}: a turn must fit the "
                f"engine's context: give less than engine.max_model_len={context}"
            )
        if rollout.dialogues_per_actor < rollout.num_dialogues:
            raise ValueError(
                f"rollout.dialogues_per_actor={rollout.dialogues_per_actor}: an actor runs whole groups: "
                f"at least group_size + extra_dialogues = {rollout.num_dialogues}"
            )
        if rollout.on_timeout == "resume" and not self.buffer.max_off_policy_steps:
            raise ValueError(
                "rollout.on_timeout=resume: a dialogue that resumes under newer weights is older than "
                "buffer.max_off_policy_steps=0 allows: give 1 or more, or use on_timeout=mask"
            )
        if self.learner.micro_batch_tokens < context:
            raise ValueError(
                f"learner.micro_batch_tokens={self.learner.micro_batch_tokens}: it must fit the "
                f"longest dialogue: give at least engine.max_model_len={context}"
            )
        if self.evaluation.every_steps:
            for gym in sorted(self.gyms.trained.keys() & self.gyms.data.keys()):
                raise ValueError(
                    f"evaluation.every_steps={self.evaluation.every_steps}: gyms.data.{gym} has no "
                    "validation tasks, and test tasks must not choose the checkpoint: omit the file, or "
                    "give 0"
                )
        if self.engine.weight_transport in ("nccl", "ipc") and not self.learner.num_gpus_per_learner:
            raise ValueError(
                f"engine.weight_transport={self.engine.weight_transport}: it needs learners on GPUs: give "
                "learner.num_gpus_per_learner=1, or use auto"
            )
        for gym in self.learner.by_gym:
            check_name(gym, modules=self.gyms.modules, where="learner.by_gym: ")
        trajectories = self.buffer.groups_per_step * rollout.group_size
        if self.learner.num_learners > trajectories:
            raise ValueError(
                f"learner.num_learners={self.learner.num_learners}: each needs a trajectory per step: "
                f"give at most buffer.groups_per_step * rollout.group_size = {trajectories}"
            )
        return self

    @model_validator(mode="after")
    def _shaping_fits_the_learner(self) -> "RunConfig":
        if not self.reward.weights.get("potential"):
            return self
        for gym in self.gyms.trained:
            rule = self.learner.credit_of(gym)
            if not rule.estimator.keeps_shaping:
                fitting = [name for name, entry in ADVANTAGES.items() if entry.keeps_shaping]
                raise ValueError(
                    f"reward.weights.potential: {gym} has advantage={rule.advantage}, which ignores "
                    "shaping, or would change which policy is best: use one of "
                    f"{', '.join(fitting)}, or omit the weight"
                )
        return self

    @property
    def plug_in_modules(self) -> dict[str, str]:
        """Modules of gyms, rewards, losses, estimators and users from outside the project, by key."""
        references = {f"reward.weights.{name}": name for name in self.reward.weights if ":" in name}
        if self.learner.loss.type == "custom":
            references["learner.loss.function"] = self.learner.loss.function
        estimators = {"learner.advantage": self.learner.advantage}
        estimators |= {f"learner.by_gym.{gym}": own for gym, own in self.learner.by_gym.items()}
        for key, estimator in estimators.items():
            if estimator.type == "custom":
                references[f"{key}.function"] = estimator.function
        for user in self.simulator.users:
            if user.type == "custom":
                references[f"simulator.users.{user.name}.factory"] = user.factory
        modules = {f"gyms.modules[{i}]": name for i, name in enumerate(self.gyms.modules)}
        return modules | {key: module_of(reference) for key, reference in references.items()}

    def to_toml(self) -> str:
        """The resolved recipe: `load` of it gives an equal config."""
        return to_toml(self.model_dump())


def load(recipe: Path | None, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Defaults, then the recipe, then the command line's dotted keys. Raises `BadInput`, one line.

    Example: `load(Path("recipes/cpu-quickstart.toml"), {"learner.lr": "1e-3"})`.
    """
    data = read_toml(recipe) if recipe else {}
    apply_overrides(data, overrides or {}, model=RunConfig)
    return validate(data, model=RunConfig)
