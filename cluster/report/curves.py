"""Reward curves: moving mean over steps with its 95 % interval, computed from the dialogues. Pure NumPy.

The unit is a group: the dialogues of one group are not independent.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from scipy.special import stdtrit

from cluster.report.reward_curve import SMOOTHING_STEPS
from cluster.report.run_rows import RunRows

MOST_POINTS = 500
"""Of a curve; every k-th step of a longer run is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """Means over windows of steps, P points."""

    steps: Int64[ndarray, "P"]
    means: Float64[ndarray, "P"]
    lows: Float64[ndarray, "P"]
    """Ends of the 95 % interval; NaN where the window has fewer than two groups."""
    highs: Float64[ndarray, "P"]
    window: int
    """Steps under one mean; fewer at both ends."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dialogues:
    """The training dialogues that a run's steps count, N of them."""

    steps: Int64[ndarray, "N"]
    groups: Int64[ndarray, "N"]
    scores: Float64[ndarray, "N"]
    gyms: ndarray  # [N] of str
    simulators: ndarray  # [N] of str

    @classmethod
    def of(cls, run: RunRows) -> "Dialogues":
        over = run.steps.max(initial=0)  # of a step at work there are only what it has dropped so far
        files = [file for file in run.files if file.is_counted and len(file.scores) and file.steps[0] <= over]
        firsts = np.cumsum([0, *(int(file.groups[-1]) + 1 for file in files)])
        of_groups = [file.groups + first for file, first in zip(files, firsts, strict=False)]
        return cls(
            steps=np.concatenate([np.zeros(0, np.int64), *(file.steps for file in files)]),
            groups=np.concatenate([np.zeros(0, np.int64), *of_groups]),
            scores=np.concatenate([np.zeros(0), *(file.scores for file in files)]),
            gyms=np.array([gym for file in files for gym in file.gyms], str),
            simulators=np.array([name for file in files for name in file.simulators], str),
        )

    def step_means(self, chosen: Bool[ndarray, "N"]) -> tuple[ndarray, ndarray]:
        """Steps and the mean score of each step's chosen dialogues that did not fail: as
        `rollout/reward/...` in metrics.jsonl."""
        scored = chosen & np.isfinite(self.scores)
        steps, of = np.unique(self.steps[scored], return_inverse=True)
        return steps, np.bincount(of, weights=self.scores[scored]) / np.bincount(of)

    def curve(self, chosen: Bool[ndarray, "N"]) -> Curve:
        """The moving mean of the chosen dialogues' group means."""
        scored = chosen & np.isfinite(self.scores)
        _, first, of = np.unique(self.groups[scored], return_index=True, return_inverse=True)
        means = np.bincount(of, weights=self.scores[scored]) / np.bincount(of)
        return moving_curve(self.steps[scored][first], means)


def moving_curve(steps: Int64[ndarray, "G"], means: Float64[ndarray, "G"]) -> Curve:
    """Group means with their steps to a curve: the mean over the groups of a window of steps, and Student's
    95 % interval of it, `m ± t(n - 1) s / sqrt(n)` for n groups."""
    order = np.argsort(steps, kind="stable")
    steps, means = steps[order], means[order]
    points = np.unique(steps)
    window = max(SMOOTHING_STEPS, len(points) // 25) | 1  # odd: as many steps before a point as after it
    points = thinned(points)
    firsts = np.searchsorted(steps, points - window // 2, side="left")
    ends = np.searchsorted(steps, points + window // 2, side="right")
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (means, means**2))
    n = ends - firsts
    centre = (sums[ends] - sums[firsts]) / n
    spread = np.maximum(0.0, (squares[ends] - squares[firsts]) / n - centre**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.where(n > 1, stdtrit(n - 1.0, 0.975) * np.sqrt(spread / (n - 1)), np.nan)
    return Curve(steps=points, means=centre, lows=centre - half, highs=centre + half, window=window)


def thinned(points: ndarray) -> ndarray:
    """At most `MOST_POINTS` of them and the last."""
    every = -(-len(points) // MOST_POINTS)
    return points if every <= 1 else np.append(points[:-1:every], points[-1])
