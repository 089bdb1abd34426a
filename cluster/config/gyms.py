"""Config section `gyms`: which gyms are trained on, their weights, rules, difficulty and data files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cluster.config.recipe import nearest
from simulators.env_factory import open_gyms
from simulators.gym import Gym
from simulators.gym_plugins import known_gyms
from simulators.gyms import GYMS


class GymsConfig(BaseModel):
    """The gyms to train on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    modules: tuple[str, ...] = ()
    """Import names of Python modules with gyms of your own; separated by commas on the command line. They
    must be installed, or in the folder where the command runs. See docs/add-a-gym.md."""
    weights: dict[str, float] = dict.fromkeys(GYMS, 1.0)
    """Share of each gym among the training tasks, by name; weight 0 excludes the gym."""
    held_out: tuple[str, ...] = ()
    """Gyms that are never trained on, regardless of their weight; evaluation includes them and reports them
    separately."""
    difficulty: int = Field(default=0, ge=0)
    """Difficulty level; 0 is the easiest, docs/gyms.md lists each gym's levels."""
    preset: Literal["default", "published"] = "default"
    """Rules of the gyms: this project's, or those of the released UserRL gyms, for comparison."""
    constants: Literal["training", "evaluation"] = "training"
    """Which of the released constants to use if `preset` is published. The default of `userrl evaluate` is
    evaluation."""
    data: dict[str, Path] = {}
    """Files of published tasks, by gym; a gym without a file generates its tasks."""

    def open(self, *, with_data: bool = True) -> dict[str, Gym]:
        """The gyms by name, under these rules; with data, their tasks come from the files. Raises ValueError
        for a file that is missing or malformed."""
        return open_gyms(self.preset, self.constants, self.data if with_data else {}, self.modules)

    @property
    def trained(self) -> dict[str, float]:
        """The weights of the gyms that are trained on."""
        return {gym: weight for gym, weight in self.weights.items() if gym not in self.held_out}

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the gyms that are trained on, normalised to a sum of 1."""
        total = sum(self.trained.values())
        return {gym: weight / total for gym, weight in self.trained.items()}

    @property
    def evaluated(self) -> list[str]:
        """Every gym of the run: those trained on, then those held out."""
        return [*self.trained, *self.held_out]

    @model_validator(mode="before")
    @classmethod
    def _own_gyms_have_a_weight_too(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("modules") or "weights" in data:
            return data
        return {**data, "weights": dict.fromkeys(known_gyms(_names(data["modules"])), 1.0)}

    @field_validator("modules", mode="before")
    @classmethod
    def _one_text_is_several_names(cls, modules: Any) -> Any:
        return _names(modules)

    @field_validator("modules")
    @classmethod
    def _modules_have_gyms(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        known_gyms(modules)
        return modules

    @field_validator("held_out", "data")
    @classmethod
    def _names_are_gyms(cls, names: Any, info: ValidationInfo) -> Any:
        for gym in names:
            check_name(gym, modules=info.data.get("modules", ()))
        return names

    @model_validator(mode="after")
    def _fits_the_preset(self) -> "GymsConfig":
        if not self.trained:
            raise ValueError("held_out: every gym is held out: keep at least one to train on")
        if self.preset == "published":
            for gym in self.evaluated:
                if gym not in self.data:
                    raise ValueError(
                        f"preset=published: {gym} has no data file: give --gyms.data.{gym} FILE, or "
                        f"exclude it with --gyms.weights.{gym} 0"
                    )
        return self

    @field_validator("weights")
    @classmethod
    def _gyms_are_known(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        for gym, weight in weights.items():
            check_name(gym, modules=info.data.get("modules", ()))
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"{gym}={weight}: a weight cannot be negative or infinite: give a share such as 1.0"
                )
        if not sum(weights.values()):
            raise ValueError(
                "no gym has a weight above 0: give at least one, as in --gyms.weights.function 1"
            )
        return {gym: weight for gym, weight in weights.items() if weight}


def check_name(gym: str, *, modules: Sequence[str], where: str = "") -> None:
    """Raises ValueError, with the nearest name, if neither this project nor these modules have the gym."""
    known = list(known_gyms(modules))
    if gym not in known:
        raise ValueError(
            f"{where}{gym!r}: unknown gym: did you mean {nearest(gym, known)}? Known: {', '.join(known)}; "
            "name the module of a gym of your own in gyms.modules"
        )


def _names(modules: Any) -> Any:
    """Splits the command line's `"a,b"` into `("a", "b")`."""
    return tuple(name.strip() for name in modules.split(",")) if isinstance(modules, str) else modules
