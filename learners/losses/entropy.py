"""Adaptive entropy bonus: adjusts its coefficient so that the policy's entropy meets a target. No tensors."""

import math
from dataclasses import dataclass

COEFFICIENT_STEP = 0.005
"""Change of the coefficient per step, as in the report's experiments; its released scripts use 0.0001 and
stop at 0.005."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyControl:
    """Skywork-OR1's adaptive entropy control (arXiv 2505.22312): c rises by a fixed amount if the entropy is
    below the target and falls if it is above; the bonus is off while the entropy is above.

    Example: at c = 0.01 and entropy 0.2 with target 0.3, c becomes 0.015 and is used.
    """

    coefficient: float = 0.0
    last_entropy: float = 0.0
    """Mean over the last step's loss tokens, in nats; 0 before the first step, which has the bonus."""

    def next_coefficient(self, *, target: float) -> float:
        """The coefficient of the next step."""
        return self.coefficient if self.last_entropy <= target else 0.0

    def updated(self, entropy: float, *, target: float) -> "EntropyControl":
        """The state after a step with this mean entropy. A non-finite entropy changes nothing."""
        if not math.isfinite(entropy):
            return self
        change = COEFFICIENT_STEP if entropy < target else -COEFFICIENT_STEP
        return EntropyControl(coefficient=max(0.0, self.coefficient + change), last_entropy=entropy)
