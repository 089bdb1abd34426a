"""Config section `learner.advantage`: a union on `type`, one class per set of keys, and the reader of such
unions. Light: imports neither torch, ray nor transformers."""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from simulators.plug_ins import PlugInName

ScoreName = Literal["sum", "mean", "reward_to_go", "max", "last"]
CreditName = Literal["naive", "equalized", "reward_to_go", "exponential"]


class FrozenConfig(BaseModel):
    """An immutable config section that refuses unknown keys; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def by_type(default: str) -> BeforeValidator:
    """Reads a bare name as a table of that `type`, and a table without `type` as one of the default type."""

    def read(value: object) -> object:
        if isinstance(value, str):
            return {"type": value}
        return {"type": default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(read)


class DiscountKeys(FrozenConfig):
    """The key that all estimators have."""

    gamma: float = Field(default=0.95, gt=0, le=1)
    """Discount per turn of reward-to-go: less than 1 prefers the quicker of two equal successes."""


class ScoreKeys(DiscountKeys):
    """The keys of estimators that compare whole trajectories."""

    trajectory_score: ScoreName = "reward_to_go"
    """Score of a trajectory: the sum of its turn rewards, their mean, the discounted sum seen from its first
    turn, the largest, or the last."""


class SpreadConfig(ScoreKeys):
    """Compares the trajectories of a group by their scores and spreads each advantage over the turns."""

    type: Literal["grpo", "dr_grpo", "rloo", "userrl_printed"] = "grpo"
    turn_credit: CreditName = "equalized"
    """How a trajectory's advantage is spread over its turns: equally, or by each turn's reward, reward-to-go
    or exponentially mapped reward."""


class UserRLConfig(DiscountKeys):
    """The arithmetic of UserRL's released code, for comparison only."""

    type: Literal["userrl_compat"] = "userrl_compat"
    trajectory_score: Literal["sum", "reward_to_go"] = "reward_to_go"
    """Score of a trajectory as released: the mean of its turn rewards, or the discounted sum seen from its
    first turn."""
    turn_credit: Literal["equalized", "reward_to_go", "exponential"] = "equalized"
    """How a trajectory's advantage is spread over its turns."""


class OutcomeConfig(ScoreKeys):
    """Adds the trajectory's score, compared within the group, to a comparison of turns."""

    type: Literal["mt_grpo", "gigpo"] = "mt_grpo"


class TurnConfig(DiscountKeys):
    """Compares turns and credits each by itself."""

    type: Literal["turn_mean", "turn_loo", "igpo"] = "turn_mean"


class TurnGaeConfig(DiscountKeys):
    """Generalized advantage estimation over turns, against a critic that is trained with the policy."""

    type: Literal["turn_gae"] = "turn_gae"
    gae_lambda: float = Field(default=0.9, ge=0, le=1)
    """GAE lambda: 0 is one-step TD with the critic, 1 the Monte-Carlo return."""
    critic_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the critic after warm-up; one critic serves all gyms. It is a small separate head: the
    default suits any policy."""


class CustomAdvantageConfig(ScoreKeys):
    """An estimator of your own: see docs/extend.md."""

    type: Literal["custom"] = "custom"
    function: PlugInName
    """`module:function` of `GroupTurns` and a `CreditRule` that returns one advantage per turn."""


_Advantage = SpreadConfig | UserRLConfig | OutcomeConfig | TurnConfig | TurnGaeConfig | CustomAdvantageConfig
AdvantageConfig = Annotated[_Advantage, Field(discriminator="type"), by_type("grpo")]
ADVANTAGE_CONFIGS: dict[str, type[_Advantage]] = {
    name: kind for kind in get_args(_Advantage) for name in get_args(kind.model_fields["type"].annotation)
}
