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
from learners.buffer.credit_columns import CREDITS, KEYS
from learners.drop_reasons import TrajectoryKey
from learners.training.forward_scoring import TurnKey


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupCredits:
    """One group as a step learns from it, N turns; each number is NaN where there is none."""

    table: pa.Table
    """`reward` holds the gain, where there is one."""
    advantages: Float64[ndarray, "N"]
    values: Float64[ndarray, "N"]
    """The critic's, 0 before a turn without tokens."""
    gains: Float64[ndarray, "N"]

    @property
    def returns(self) -> Float64[ndarray, "N"]:
        """What the critic should have said."""
        return self.advantages + self.values


def credit_table(
    groups: Sequence[GroupCredits],
    *,
    credit_of: CreditOf,
    learned: Collection[TrajectoryKey],
    in_loss: Mapping[TurnKey, float],
) -> pa.Table:
    """A row a turn of these groups, columns `KEYS` and `CREDITS`. `learned`: the trajectories that the step
    learned from. `in_loss`: the advantages of turns in which the loss took others than the groups'."""
    if not groups:
        return pa.unify_schemas([KEYS, CREDITS]).empty_table()
    table = pa.concat_tables([group.table.select([*KEYS.names, "gym", "reward"]) for group in groups])
    group_ids, trajectories, turns = (table[name].to_numpy() for name in KEYS.names)
    firsts = np.flatnonzero((np.diff(group_ids, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) != 0))
    begun = zip(group_ids[firsts].tolist(), trajectories[firsts].tolist(), strict=True)
    is_learned = np.repeat([key in learned for key in begun], np.diff([*firsts, table.num_rows]))
    advantages = np.concatenate([group.advantages for group in groups])
    if in_loss:
        places = zip(group_ids.tolist(), trajectories.tolist(), turns.tolist(), strict=True)
        advantages = np.array([in_loss.get(key, own) for key, own in zip(places, advantages, strict=True)])
    numbers: dict[str, ndarray] = {
        "advantage": advantages,
        "value": np.concatenate([group.values for group in groups]),
        "credit": _credits(table, firsts=firsts, credit_of=credit_of),
        "gain": np.concatenate([group.gains for group in groups]),
    }
    # New arrays: slices of the groups' tables would take the whole tables along.
    keys = [pa.array(column) for column in (group_ids, trajectories, turns)]
    columns = [_column(numbers[name], known=is_learned) for name in CREDITS.names]
    return pa.table([*keys, *columns], schema=pa.unify_schemas([KEYS, CREDITS]))


def _credits(table: pa.Table, *, firsts: ndarray, credit_of: CreditOf) -> Float64[ndarray, "N"]:
    """Each turn's reward as its gym's rule takes it, before any comparison."""
    gyms = table["gym"].take(pa.array(firsts)).to_pylist()
    rewards = np.split(table["reward"].to_numpy(), firsts[1:])
    credits: list[ndarray] = []
    for gym, pairs in groupby(zip(gyms, rewards, strict=True), key=lambda pair: pair[0]):
        rule = credit_of(gym)
        credits += rule.estimator.credit(rule, [turns for _, turns in pairs])
    return np.concatenate(credits)


def _column(values: Float64[ndarray, "N"], *, known: Bool[ndarray, "N"]) -> pa.Array:
    """float32, as the loss reads it; null where it is not known, or no number."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return pa.array(narrow, mask=~(known & np.isfinite(narrow)))
