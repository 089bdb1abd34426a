"""Scorer of finished groups inside a rollout actor: runs the reward functions, and the judge if configured,
and adds the `reward` column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actors.trajectory_table import REWARD
from rewards.config import RewardConfig
from rewards.judge import Judge, Rating
from rewards.reward_functions import RewardContext, reward_function

JUDGE = "judge"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Scores groups by a run's settings. Can be pickled."""

    weights: Mapping[str, float]
    context: RewardContext
    judge: Judge | None

    async def __call__(self, table: pa.Table, is_trained: bool) -> pa.Table:
        """The table with its `reward` column. Where the judge gave no rating, the reward is NaN and `error`
        says why.

        The judge is asked about what the learners may train on, and left out of all other sums: evaluation
        and demonstrations read the environment's rewards alone.
        """
        if self.judge is None or not is_trained:
            weights = {name: weight for name, weight in self.weights.items() if name != JUDGE}
            return with_rewards(table, weights, self.context)
        ratings = await self.judge.rate(table)
        context = replace(self.context, ratings=[rating.score for rating in ratings])
        return with_rewards(_with_problems(table, ratings), self.weights, context)


def make_scorer(config: RewardConfig, *, context: RewardContext, num_processes: int) -> Scorer:
    """`num_processes` score at the same time and share the judge's limits. Raises ValueError where the
    judge's key is not set."""
    judge = Judge.connect(config.judge, num_processes=num_processes) if config.judge else None
    return Scorer(weights=config.weights, context=context, judge=judge)


def _with_problems(table: pa.Table, ratings: Sequence[Rating]) -> pa.Table:
    """The table with the judge's problems in `error`, where the dialogue itself had none."""
    pairs = zip(table["error"].to_pylist(), table["trajectory"].to_pylist(), strict=True)
    errors = [error or ratings[trajectory].problem for error, trajectory in pairs]
    return table.set_column(
        table.schema.get_field_index("error"), table.schema.field("error"), pa.array(errors, pa.string())
    )


def with_rewards(table: pa.Table, weights: Mapping[str, float], context: RewardContext) -> pa.Table:
    """The table with its `reward` column: the weighted sum, NaN on every turn of a trajectory that failed.

    A failure is never a score: averages must leave failed trajectories out, and NaN shows it if they do not.
    """
    total = np.zeros(table.num_rows)
    for name, weight in weights.items():
        part = reward_function(name)(table, context)
        if np.shape(part) != total.shape:
            raise ValueError(f"{name}: returned {np.shape(part)} numbers: one for each row, {total.shape}")
        total = total + weight * part
    total = np.where(table["failed"].to_numpy(), np.nan, total)
    return table.append_column(REWARD, pa.array(total, pa.float64(), from_pandas=False))
