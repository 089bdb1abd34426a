"""A run's whole configuration: composes the rooms' configs, and holds the few rules that span rooms.

Light: no torch, Ray, vLLM or transformers, so that a recipe is checked in an instant. The docstring under a
field is its help.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from actors.config import EngineConfig, RolloutConfig
from cluster.recipe import apply_overrides, nearest, read_toml, to_toml, validate
from learners.advantage import ADVANTAGES
from learners.config import LearnerConfig, TinyPolicyConfig
from learners.sft_config import SftConfig
from rewards.config import RewardConfig
from simulators.config import SimulatorConfig
from simulators.gyms import GYMS

FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RunNameConfig(BaseModel):
    """Which run this is."""

    model_config = FROZEN

    name: str = "run"
    """The run's name: its folder's name, and its name in W&B."""
    folder: str = "runs"
    """Where run folders lie."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Every random draw of the run derives from it."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("a run's name is one folder's name: use letters, digits, '.', '_' and '-' only")
        return name


class PolicyConfig(BaseModel):
    """The model that is trained."""

    model_config = FROZEN

    path: str | None = None
    """A Hugging Face causal LM: a folder, or a hub name. Not given: a tiny policy with random weights."""
    tiny: TinyPolicyConfig = TinyPolicyConfig()


class RayConfig(BaseModel):
    """The cluster."""

    model_config = FROZEN

    address: str | None = None
    """A Ray cluster to join: HOST:PORT, ray://HOST:PORT, or auto. Not given: Ray starts here."""


class GymsConfig(BaseModel):
    """What to train on."""

    model_config = FROZEN

    weights: dict[str, float] = dict.fromkeys(GYMS, 1.0)
    """Share of each gym among the training tasks, by name; a weight of 0 leaves the gym out."""
    held_out: tuple[str, ...] = ()
    """Gyms that are never trained on, whatever their weight; evaluation has them and reports them apart."""
    difficulty: int = Field(default=0, ge=0)
    """0 is the easiest; each gym says what its levels mean."""
    preset: Literal["default", "published"] = "default"
    """Whose rules: ours, or those of the released UserRL gyms, for comparison."""
    constants: Literal["training", "evaluation"] = "training"
    """Which of the released constants, where `preset` is published. `userrl evaluate` takes those of
    evaluation unless told otherwise."""
    data: dict[str, Path] = {}
    """Files of published tasks, by gym; gyms without one generate theirs."""

    @property
    def trained(self) -> dict[str, float]:
        """The weights of the gyms that are trained on."""
        return {gym: weight for gym, weight in self.weights.items() if gym not in self.held_out}

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the gyms that are trained on, as parts of 1."""
        total = sum(self.trained.values())
        return {gym: weight / total for gym, weight in self.trained.items()}

    @property
    def evaluated(self) -> list[str]:
        """Every gym of the run: those trained on, then those held out."""
        return [*self.trained, *self.held_out]

    @field_validator("held_out", "data")
    @classmethod
    def _names_are_gyms(cls, names: Any) -> Any:
        for gym in names:
            _check_gym(gym)
        return names

    @model_validator(mode="after")
    def _fits_the_preset(self) -> "GymsConfig":
        if not self.trained:
            raise ValueError("held_out: every gym is held out: leave at least one to train on")
        if self.preset == "published":
            for gym in self.evaluated:
                if gym not in self.data:
                    raise ValueError(
                        f"preset=published: {gym} has no tasks of its own: give --gyms.data.{gym} FILE, or "
                        f"leave it out with --gyms.weights.{gym} 0"
                    )
        return self

    @field_validator("weights")
    @classmethod
    def _gyms_are_known(cls, weights: dict[str, float]) -> dict[str, float]:
        for gym, weight in weights.items():
            _check_gym(gym)
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"{gym}={weight}: a weight cannot be negative or infinite: give a share such as 1.0"
                )
        if not sum(weights.values()):
            raise ValueError(
                "no gym has a weight above 0: give at least one, as in --gyms.weights.function 1"
            )
        return {gym: weight for gym, weight in weights.items() if weight}


def _check_gym(gym: str) -> None:
    if gym not in GYMS:
        known = ", ".join(GYMS)
        raise ValueError(f"{gym!r}: unknown gym: did you mean {nearest(gym, list(GYMS))}? Known: {known}")


class BufferConfig(BaseModel):
    """Scored groups waiting for the learners."""

    model_config = FROZEN

    groups_per_step: int = Field(default=8, ge=1)
    """Groups that one optimizer step takes."""
    max_off_policy_steps: int = Field(default=0, ge=0)
    """How many policy versions old a trained token may be; 0 is synchronous training."""


class GrpoRunConfig(BaseModel):
    """Length of the GRPO stage; its loss is the learner's."""

    model_config = FROZEN

    num_steps: int = Field(default=60, ge=0)
    """Optimizer steps of GRPO."""


class EvaluationConfig(BaseModel):
    """Scores on held-out tasks: before SFT, after SFT, after GRPO. Scores on validation tasks in between."""

    model_config = FROZEN

    tasks_per_gym: int = Field(default=200, ge=1)
    """Held-out tasks of each gym, one dialogue each."""
    every_steps: int = Field(default=0, ge=0)
    """GRPO steps between two scores on validation tasks, by which the best checkpoint is kept; 0 is never."""
    validation_tasks_per_gym: int = Field(default=25, ge=1)
    """Validation tasks of each trained gym; neither trained on nor among the held-out ones."""


class CheckpointConfig(BaseModel):
    """What a stopped run goes on from."""

    model_config = FROZEN

    every_steps: int = Field(default=10, ge=1)
    """GRPO steps between two checkpoints; one more is saved when the run ends or is stopped."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk; beside them the best, where `evaluation.every_steps` is set."""


class TrackingConfig(BaseModel):
    """Weights & Biases."""

    model_config = FROZEN

    project: str = "userrl"
    """The W&B project."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where a W&B key is found and offline where none is."""
    dialogues_per_step: int = Field(default=4, ge=0)
    """Dialogues of each step that go into the W&B table."""


class RunConfig(BaseModel):
    """One run, whole: what a recipe names, with every default filled in."""

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
                "rollout.on_timeout=resume: a dialogue that goes on under newer weights is older than "
                "buffer.max_off_policy_steps=0 allows: give 1 or more, or take on_timeout=mask"
            )
        if self.learner.micro_batch_tokens < context:
            raise ValueError(
                f"learner.micro_batch_tokens={self.learner.micro_batch_tokens}: it must hold the "
                f"longest dialogue: give at least engine.max_model_len={context}"
            )
        if self.evaluation.every_steps:
            for gym in sorted(self.gyms.trained.keys() & self.gyms.data.keys()):
                raise ValueError(
                    f"evaluation.every_steps={self.evaluation.every_steps}: gyms.data.{gym} has no tasks for "
                    "validation only, and test tasks choose no checkpoint: leave the file out, or give 0"
                )
        if self.engine.weight_transport in ("nccl", "ipc") and not self.learner.num_gpus_per_learner:
            raise ValueError(
                f"engine.weight_transport={self.engine.weight_transport}: it goes from GPU to GPU: give "
                "learner.num_gpus_per_learner=1, or take auto"
            )
        trajectories = self.buffer.groups_per_step * rollout.group_size
        if self.learner.num_learners > trajectories:
            raise ValueError(
                f"learner.num_learners={self.learner.num_learners}: every learner needs a trajectory a step: "
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
                    f"reward.weights.potential: {gym} has advantage={rule.advantage}, which does not see "
                    "shaping, or would take another policy for the best: take one of "
                    f"{', '.join(fitting)}, or leave the weight out"
                )
        return self

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
