"""Test for groups without a gradient: whether the group's estimator gives every token an advantage of zero.
Pure NumPy."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from actors.trajectory import GroupSummary
from learners.advantages.estimators import CreditRule, make_estimator


def is_flat(
    summary: GroupSummary,
    *,
    credit_of: Callable[[str], CreditRule],
    masks_truncated: bool = False,
    has_gains: bool = False,
) -> bool:
    """Whether the estimator of the group's gym gives no token that would be learned from an advantage.

    `credit_of` is `LearnerConfig.credit_of`. With `masks_truncated`, what was cut off is compared but not
    learned from; with `has_gains`, turn rewards are not yet all that is compared. Never flat is what only the
    model's own numbers can tell.
    """
    rule = credit_of(summary.task_key.gym)
    if has_gains or rule.estimator.asks_critic:
        return False
    reasons = summary.stop_reasons
    if rule.estimator.spreads and len(_earned(summary)) == 1:
        return True  # whatever rounding makes of it
    num_tokens = [np.array(lengths, int) for lengths in summary.turn_tokens]
    advantages = make_estimator(**asdict(rule))(
        [
            np.where(reason.failed, np.nan, np.array(rewards, float))
            for rewards, reason in zip(summary.turn_rewards, reasons, strict=True)
        ],
        num_tokens=num_tokens,
        states=summary.turn_states,
    )
    return not any(
        np.nan_to_num(values)[lengths > 0].any()
        for values, lengths, reason in zip(advantages, num_tokens, reasons, strict=True)
        if not (masks_truncated and reason.truncated)
    )


def _earned(summary: GroupSummary) -> set[tuple[float, ...]]:
    """What the trajectories that did not fail earned, turn by turn."""
    pairs = zip(summary.turn_rewards, summary.stop_reasons, strict=True)
    return {tuple(rewards) for rewards, reason in pairs if not reason.failed and np.isfinite(rewards).all()}
