"""Config section `reward`: weights of the reward functions and settings of the judge. Light: no heavy import,
so a recipe is checked in an instant."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rewards.reward_functions import reward_function
from simulators.llm_client.config import ChatConfig


class JudgeConfig(ChatConfig):
    """A model at an OpenAI-compatible endpoint that rates whole dialogues."""

    rubric: str = Field(min_length=1)
    """What to rate, and what makes a dialogue good or bad, in words. The scale, 0 to 10, is appended."""
    votes: int = Field(default=3, ge=1)
    """Independent ratings of each dialogue; the median counts, and more than half must be valid."""

    @model_validator(mode="after")
    def _votes_differ(self) -> Self:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(
                f"votes={self.votes}: at temperature=0 each vote is the same: take a temperature above 0, or "
                "votes = 1"
            )
        return self


class RewardConfig(BaseModel):
    """Reward of a turn: the weighted sum of named reward functions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    weights: dict[str, float] = {"environment": 1.0}
    """Weight of each reward function, by name; docs/rewards.md lists them; `module:function` names one
    of your own. Costs (turn, length, no_tool_call)
    are meant for negative weights. Evaluation reports the environment's reward alone."""
    judge: JudgeConfig | None = None
    """The judge model of the reward function `judge`."""

    @field_validator("weights")
    @classmethod
    def _names_are_known(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            reward_function(name)  # raises ValueError
            if not abs(weight) < float("inf"):
                raise ValueError(f"{name}={weight}: a weight must be a finite number: give one such as 0.1")
        return weights

    @model_validator(mode="after")
    def _judge_is_asked(self) -> Self:
        if ("judge" in self.weights) != (self.judge is not None):
            raise ValueError(
                "weights.judge needs a judge: give reward.judge base_url, model and rubric"
                if self.judge is None
                else "judge: it would never be used: give weights.judge a weight, or leave the section out"
            )
        return self
