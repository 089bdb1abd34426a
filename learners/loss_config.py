"""Config sections of the loss: `learner.loss`, `.importance`, `.entropy`, `.kl` and `.aggregation`, unions on
`type`. Light: imports neither torch, ray nor transformers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from learners.advantages.config import FrozenConfig, by_type
from simulators.plug_ins import PlugInName


class LossKeys(FrozenConfig):
    """What all policy losses have."""

    has_ratio: ClassVar[bool] = True
    """Whether the objective contains policy / behavior, so that an importance weight would count it twice."""


class PpoConfig(LossKeys):
    """PPO with two clip bounds and a dual clip."""

    type: Literal["ppo"] = "ppo"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The probability ratio of a token is clipped at 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """The probability ratio of a token is clipped at 1 + clip_high."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Upper bound of the ratio if the advantage is negative (dual-clip PPO, arXiv 1912.09729)."""


class GspoConfig(LossKeys):
    """GSPO: the clipped ratio is the geometric mean over the tokens of a sequence."""

    type: Literal["gspo"] = "gspo"
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    """The probability ratio of a sequence is clipped at 1 - clip_low."""
    clip_high: float = Field(default=4e-4, gt=0)
    """The probability ratio of a sequence is clipped at 1 + clip_high."""


class TurnClipConfig(LossKeys):
    """Turn-level PPO: the clipped ratio is the geometric mean over the tokens of a turn."""

    type: Literal["turn"] = "turn"
    clip_low: float = Field(default=3e-3, gt=0, lt=1)
    """The probability ratio of a turn is clipped at 1 - clip_low."""
    clip_high: float = Field(default=4e-3, gt=0)
    """The probability ratio of a turn is clipped at 1 + clip_high."""


class CispoConfig(LossKeys):
    """CISPO: the ratio is a bounded weight, and no token loses its gradient."""

    type: Literal["cispo"] = "cispo"
    clip_high: float = Field(default=0.28, gt=0)
    """Upper bound of the weights: 1 + clip_high."""


class SapoConfig(LossKeys):
    """SAPO: a gate fades the gradient as the ratio leaves 1."""

    type: Literal["sapo"] = "sapo"
    positive: float = Field(default=1.0, gt=0)
    """Temperature of the gate if the advantage is positive: the larger, the sooner the gradient fades."""
    negative: float = Field(default=1.05, gt=0)
    """Temperature of the gate if the advantage is negative."""


class ReinforceConfig(LossKeys):
    """The policy gradient without a ratio."""

    has_ratio: ClassVar[bool] = False
    type: Literal["reinforce"] = "reinforce"


class CustomLossConfig(LossKeys):
    """A loss of your own: see docs/extend.md."""

    type: Literal["custom"] = "custom"
    function: PlugInName
    """`module:function` of `LossTokens` and these settings that returns a `TokenObjective`."""
    options: dict[str, float] = Field(default={})
    """Numbers for the function, which reads them as `config.options`."""


LossConfig = Annotated[
    PpoConfig | GspoConfig | TurnClipConfig | CispoConfig | SapoConfig | ReinforceConfig | CustomLossConfig,
    Field(discriminator="type"),
    by_type("ppo"),
]


class NoImportanceConfig(FrozenConfig):
    """No importance weights."""

    type: Literal["none"] = "none"


class ImportanceKeys(FrozenConfig):
    """The keys that both kinds of importance weights have."""

    level: Literal["token", "turn", "sequence"] = "token"
    """Unit of the ratio: each token, or the product over its turn or its sequence."""
    high: float = Field(default=5.0, ge=1)
    """Upper bound of the ratio."""


class TruncatedConfig(ImportanceKeys):
    """Ratios above the bound are lowered to it. Only for `reinforce`, which has no ratio of its own."""

    type: Literal["truncated"] = "truncated"


class MaskedConfig(ImportanceKeys):
    """Tokens whose ratio is outside the bounds are left out of the loss. For any loss."""

    type: Literal["masked"] = "masked"
    low: float = Field(default=0.5, ge=0, le=1)
    """Lower bound of the ratio."""


ImportanceConfig = Annotated[
    NoImportanceConfig | TruncatedConfig | MaskedConfig, Field(discriminator="type"), by_type("none")
]


class EntropyConfig(FrozenConfig):
    """The entropy bonus."""

    coefficient: float = Field(default=0.0, ge=0)
    """Weight of the policy's mean entropy in the objective; with a target, its initial value."""
    target: float = Field(default=0.0, ge=0)
    """Target entropy, in nats: the coefficient rises below it and falls above it, where the bonus is off. 0:
    no target, a constant coefficient."""


class NoKlConfig(FrozenConfig):
    """No KL term; no reference model is loaded."""

    type: Literal["none"] = "none"


class ReferenceKlConfig(FrozenConfig):
    """KL to a reference model: k1 is subtracted from the advantages, k2 and k3 are added to the loss."""

    type: Literal["k1", "k2", "k3"]
    coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL; 0 only measures it."""
    reference: str = ""
    """The reference model: a folder or a hub name. Empty: the policy at the start of GRPO, after SFT."""


KlConfig = Annotated[NoKlConfig | ReferenceKlConfig, Field(discriminator="type"), by_type("none")]


class MeanConfig(FrozenConfig):
    """The mean over tokens, or over trajectories."""

    type: Literal["token_mean", "sequence_mean"] = "token_mean"


class ConstantLengthConfig(FrozenConfig):
    """Divides by a constant length for each trajectory (Dr. GRPO)."""

    type: Literal["constant_length"] = "constant_length"
    tokens: int = Field(gt=0)
    """Tokens that each trajectory counts as; best the longest allowed."""


class TokenBudgetConfig(FrozenConfig):
    """Divides by a fixed number of tokens (C3PO)."""

    type: Literal["token_budget"] = "token_budget"
    tokens: int = Field(gt=0)
    """Loss tokens of a step; trajectories beyond them are left out."""


AggregationConfig = Annotated[
    MeanConfig | ConstantLengthConfig | TokenBudgetConfig, Field(discriminator="type"), by_type("token_mean")
]
