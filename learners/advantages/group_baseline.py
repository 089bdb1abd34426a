"""Group baselines: one score per trajectory, compared with the other trajectories of its group. Pure NumPy;
knows no turns.

A non-finite score belongs to a trajectory that failed: it is left out of every mean and deviation, and its
advantage is NaN. Fewer than two scores, or equal ones, give zeros.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

FLAT_STD = 1e-8
"""A group whose scores spread less than this has nothing to compare: every advantage is zero."""


def group_relative(
    scores: Float[ndarray, "group_size"], *, divide_by_std: bool
) -> Float[ndarray, "group_size"]:
    """Each score against its group (GRPO, DeepSeekMath, arXiv 2402.03300 §4.1.2), NaN for a non-finite score.

    The standard deviation is the population's (divided by n), so that no advantage exceeds sqrt(n - 1).
    Without the division: Dr. GRPO, arXiv 2503.20783. Fewer than two scores, or equal ones, give zeros.
    """
    valid = np.isfinite(scores)
    if not valid.any():
        return np.full_like(scores, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        centred = np.where(valid, scores, np.nan) - scores[valid].mean()
        std = scores[valid].std()
    if not np.isfinite(std):
        return np.full_like(scores, np.nan)
    if std < FLAT_STD:
        return np.where(valid, 0.0, np.nan)
    return centred / std if divide_by_std else centred


def leave_one_out(scores: Float[ndarray, "group_size"]) -> Float[ndarray, "group_size"]:
    """A_i = R_i - mean over j != i of R_j (RLOO, arXiv 2402.14740; Kool et al. 2019).

    n / (n - 1) times Dr. GRPO's: the baseline excludes the trajectory itself, so that the gradient has no
    bias in size either."""
    num_valid = int(np.isfinite(scores).sum())
    return group_relative(scores, divide_by_std=False) * (num_valid / max(1, num_valid - 1))
