"""Config section `sft`: demonstrations and optimizer settings of the cold start. Light: imports neither
torch, ray nor transformers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A path, made absolute at once, so that a stopped run can resume from any folder."""


class SftConfig(BaseModel):
    """The SFT stage: imitation of demonstrations by token-mean cross-entropy on the policy's turns. All
    sources are combined."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    demonstrator: Literal["expert", "hasty"] = "expert"
    """The scripted demonstrator: the expert, or a hasty one that sometimes acts before it has asked
    enough."""
    num_demonstrations: int = Field(default=600, ge=0)
    """Dialogues of the scripted demonstrator, over all gyms by their weights; 0: none."""
    runs: tuple[AbsolutePath, ...] = ()
    """Folders of earlier runs whose best dialogues on training tasks are imitated."""
    best_per_gym: int = Field(default=200, ge=1)
    """Total number of dialogues per gym from those runs."""
    files: tuple[AbsolutePath, ...] = ()
    """Files of dialogues in ShareGPT format: JSON or JSON lines."""
    num_epochs: float = Field(default=2.0, gt=0)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=16, ge=1)
    """Samples per optimizer step."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate after warm-up. The default suits the tiny policy; use about 1e-5 for a pretrained one."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps of linear warm-up."""

    @field_validator("runs", "files", mode="before")
    @classmethod
    def _accept_a_single_path(cls, places: object) -> object:
        return [places] if isinstance(places, str | Path) else places

    @field_validator("runs", "files")
    @classmethod
    def _refuse_duplicates(cls, places: tuple[Path, ...]) -> tuple[Path, ...]:
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"{place} is given twice: leave one out")
        return places

    @property
    def has_sources(self) -> bool:
        """Whether there are demonstrations; without any the stage is skipped."""
        return bool(self.num_demonstrations or self.runs or self.files)
