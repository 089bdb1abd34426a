"""Settings of the rewards room. Light: no heavy import, so that a recipe is checked in an instant."""

from pydantic import BaseModel, ConfigDict, field_validator

REWARD_NAMES = ("environment", "turn", "no_tool_call")


class RewardConfig(BaseModel):
    """What a turn is worth to the learner: the weighted sum of named reward functions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weights: dict[str, float] = {"environment": 1.0}
    """Reward function to weight: `environment` is the gym's own reward; `turn` is 1 a turn and `no_tool_call`
    1 where the policy made no valid tool call, both meant for negative weights. Evaluation reports the
    environment's alone."""

    @field_validator("weights")
    @classmethod
    def _names_are_known(cls, weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            if name not in REWARD_NAMES:
                raise ValueError(
                    f"{name!r}: unknown reward function: the known ones are {', '.join(REWARD_NAMES)}"
                )
        return weights
