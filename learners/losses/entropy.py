"""Adaptive entropy bonus: adjusts its coefficient so that the policy's entropy meets a target. No tensors."""

import math
from dataclasses import dataclass

COEFFICIENT_STEP = 0.005
"""How far the coefficient moves in one step: the report's experiments; its released scripts take 0.0001 and
stop at 0.005."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyControl:
    """Skywork-OR1's adaptive entropy control (arXiv 2505.22312): c rises by a fixed amount where the entropy
    is below the target and falls where it is above, and counts only while it is not above.

    Example: at c = 0.01 and entropy 0.2 with target 0.3, c becomes 0.015 and is used.
    """

    coefficient: float = 0.0
    last_entropy: float = 0.0
    """Mean over the last step's loss tokens, nats; 0 before the first step, which takes the bonus."""

    def used(self, *, target: float) -> float:
        """The coefficient of the coming step."""
        return self.coefficient if self.last_entropy <= target else 0.0

    def after(self, entropy: float, *, target: float) -> "EntropyControl":
        """After a step with this mean entropy. One that is not finite changes nothing."""
        if not math.isfinite(entropy):
            return self
        change = COEFFICIENT_STEP if entropy < target else -COEFFICIENT_STEP
        return EntropyControl(coefficient=max(0.0, self.coefficient + change), last_entropy=entropy)
