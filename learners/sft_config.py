"""Configuration of the cold start. Light: imports neither torch, ray nor transformers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
