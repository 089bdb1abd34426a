"""Credit table of a step for the archive: advantage, value, credit and gain of each turn. The same on every
rank; reads no token ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64
from numpy import ndarray

from learners.advantages.group_advantages import CreditOf
from learners.batch.samples import is_new_trajectory
from learners.buffer.credit_columns import CREDITS, KEYS
from learners.drop_reasons import TrajectoryKey
from learners.training.forward_scoring import TurnKey


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupCredits:
    """One group as the step uses it, N turns; NaN stands for a missing number."""

    table: pa.Table
    """`reward` includes the information gain, if there is one."""
    advantages: Float64[ndarray, "N"]
    values: Float64[ndarray, "N"]
    """The critic's value before each turn, 0 for a turn without tokens."""
    gains: Float64[ndarray, "N"]

    @property
    def returns(self) -> Float64[ndarray, "N"]:
        """Targets of the critic."""
        return self.advantages + self.values


def credit_table(
    groups: Sequence[GroupCredits],
    *,
    credit_of: CreditOf,
    trained: Collection[TrajectoryKey],
    loss_advantages: Mapping[TurnKey, float],
) -> pa.Table:
    """One row per turn of these groups, columns `KEYS` and `CREDITS`. `trained`: the trajectories that the
    step learned from. `loss_advantages`: advantages of the turns for which the loss used others than the
    groups'."""
    if not groups:
        return pa.unify_schemas([KEYS, CREDITS]).empty_table()
    table = pa.concat_tables([group.table.select([*KEYS.names, "gym", "reward"]) for group in groups])
    group_ids, trajectories, turns = (table[name].to_numpy() for name in KEYS.names)
    firsts = np.flatnonzero(is_new_trajectory(table))
    owners = zip(group_ids[firsts].tolist(), trajectories[firsts].tolist(), strict=True)
    is_trained = np.repeat([key in trained for key in owners], np.diff([*firsts, table.num_rows]))
    advantages = np.concatenate([group.advantages for group in groups])
    if loss_advantages:
        keys = zip(group_ids.tolist(), trajectories.tolist(), turns.tolist(), strict=True)
        advantages = np.array(
            [loss_advantages.get(key, own) for key, own in zip(keys, advantages, strict=True)]
        )
    numbers: dict[str, ndarray] = {
        "advantage": advantages,
        "value": np.concatenate([group.values for group in groups]),
        "credit": _credits(table, firsts=firsts, credit_of=credit_of),
        "gain": np.concatenate([group.gains for group in groups]),
    }
    # New arrays: slices of the groups' tables would keep the whole tables in memory.
    key_columns = [pa.array(column) for column in (group_ids, trajectories, turns)]
    columns = [_column(numbers[name], known=is_trained) for name in CREDITS.names]
    return pa.table([*key_columns, *columns], schema=pa.unify_schemas([KEYS, CREDITS]))


def _credits(table: pa.Table, *, firsts: ndarray, credit_of: CreditOf) -> Float64[ndarray, "N"]:
    """Each turn's credit by its gym's rule, before any comparison."""
    gyms = table["gym"].take(pa.array(firsts)).to_pylist()
    rewards = np.split(table["reward"].to_numpy(), firsts[1:])
    credits: list[ndarray] = []
    for gym, pairs in groupby(zip(gyms, rewards, strict=True), key=lambda pair: pair[0]):
        rule = credit_of(gym)
        credits += rule.estimator.credit(rule, [turns for _, turns in pairs])
    return np.concatenate(credits)


def _column(values: Float64[ndarray, "N"], *, known: Bool[ndarray, "N"]) -> pa.Array:
    """As float32, which the loss uses; null if not known or not finite."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return pa.array(narrow, mask=~(known & np.isfinite(narrow)))
