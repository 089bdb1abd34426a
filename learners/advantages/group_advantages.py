"""Advantages of one scored group's table. A rollout actor computes them once, as the column `turn_advantage`,
together with the drop reasons of the group; the learner recomputes only those that need its model."""

from collections.abc import Callable, Sequence
from itertools import pairwise, starmap

import numpy as np
import pyarrow as pa
from numpy import ndarray

from actors.group_summary import CreditedTable
from actors.trajectory import StopReason
from actors.trajectory_table import num_tokens
from learners.advantages.estimators import CreditRule
from learners.drop_reasons import group_drop_reasons

TURN_ADVANTAGE = pa.field("turn_advantage", pa.float64())
"""NaN on every turn of a trajectory that failed or has no reward; null if only the learner can compute it."""
CreditOf = Callable[[str], CreditRule]
"""Gym to its credit rule: `LearnerConfig.credit_of`."""
ToldFacts = frozenset[str]
"""All that a policy has been told."""


def credit_group(
    table: pa.Table,
    is_trained: bool,
    *,
    credit_of: CreditOf,
    masks_truncated: bool = False,
    has_gains: bool = False,
) -> CreditedTable:
    """A scored group with the drop reasons of its trajectories; if `is_trained` also with the column
    `TURN_ADVANTAGE` and the drop reason of the group.

    `masks_truncated`: truncated trajectories are compared but not trained. `has_gains`: the learner will add
    information gains to the rewards. With these, or with a critic, no group is flat before the learner.
    """
    reasons = group_drop_reasons(table)
    if not is_trained:
        return CreditedTable(table=table, drop_reasons=reasons)
    rule = credit_of(table["gym"][0].as_py())
    group_reason = "too_few" if reasons.count("") < 2 else ""
    if has_gains or rule.estimator.asks_critic:
        column = pa.nulls(table.num_rows, TURN_ADVANTAGE.type)
    else:
        advantages = row_advantages(table, rule)
        column = pa.array(advantages)
        if not group_reason and is_flat(table, advantages, rule=rule, masks_truncated=masks_truncated):
            group_reason = "flat"
    table = table.append_column(TURN_ADVANTAGE, column)
    return CreditedTable(table=table, drop_reasons=reasons, group_drop_reason=group_reason)


def is_flat(table: pa.Table, advantages: ndarray, *, rule: CreditRule, masks_truncated: bool) -> bool:
    """Whether no turn that would be trained has a non-zero advantage; `advantages` is [num_rows]."""
    if rule.estimator.spreads and len(_earned(table)) == 1:
        return True  # despite what rounding leaves
    is_trained = num_tokens(table) > 0
    if masks_truncated:
        is_trained &= ~np.array([StopReason(one).truncated for one in table["stop_reason"].to_pylist()])
    return not np.nan_to_num(advantages)[is_trained].any()


def gym_advantages(
    table: pa.Table, credit_of: CreditOf, *, values: ndarray | None = None
) -> ndarray:  # [num_rows]
    """`row_advantages` of one group by its gym's rule."""
    return row_advantages(table, credit_of(table["gym"][0].as_py()), values=values)


def row_advantages(
    table: pa.Table, rule: CreditRule, *, values: ndarray | None = None
) -> ndarray:  # [num_rows]
    """One group's advantages in the table's row order, NaN on each turn of a trajectory that failed or has no
    reward. `values` [num_rows] are the critic's before each turn."""
    places = _trajectories(table)
    rewards, lengths = _rewards(table), num_tokens(table)
    advantages = rule.advantages(
        [rewards[place] for place in places],
        num_tokens=[lengths[place] for place in places],
        states=turn_states(table) if rule.estimator.compares_states else None,
        values=None if values is None else [values[place] for place in places],
    )
    return np.concatenate(advantages)


def turn_states(table: pa.Table) -> list[list[ToldFacts]]:  # [num_dialogues][num_turns]
    """The facts that the policy had been told before each turn of a group, by the gym's own `news`."""
    told = table["news"].to_pylist()
    return [state_keys(told[place]) for place in _trajectories(table)]


def state_keys(told: Sequence[str]) -> list[ToldFacts]:  # [num_turns]
    """A trajectory's state before each turn: the facts told so far, in any order and any number of times.

    Two trajectories that asked the same questions in another order are in the same state. An empty text
    leaves the state as it is.
    """
    states, state = [], ToldFacts()
    for news in told:
        states.append(state)
        if news:
            state |= {news}
    return states


def _earned(table: pa.Table) -> set[tuple[float, ...]]:
    """The turn rewards of each trajectory that has all of them."""
    rewards = _rewards(table)
    parts = (rewards[place] for place in _trajectories(table))
    return {tuple(own.tolist()) for own in parts if np.isfinite(own).all()}


def _rewards(table: pa.Table) -> ndarray:  # [num_rows]
    return np.where(table["failed"].to_numpy(), np.nan, table["reward"].to_numpy())


def _trajectories(table: pa.Table) -> list[slice]:  # [num_dialogues]
    """The rows of each trajectory."""
    firsts = np.flatnonzero(np.diff(table["trajectory"].to_numpy(), prepend=-1))
    return list(starmap(slice, pairwise([*firsts.tolist(), table.num_rows])))
