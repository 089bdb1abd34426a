"""Samples to train on, read from the Arrow tables of groups and demonstrations. Knows no model, no torch,
no Ray."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32
from numpy import ndarray

from actors.summary import turn_states
from actors.trajectory import StopReason
from learners.advantage import CreditRule, Estimator, make_estimator
from learners.dropped import drop_reasons


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingSample:
    """One token sequence to train on: a trajectory, or the part of it between two forks."""

    group_id: int
    trajectory: int
    gym: str
    token_ids: Int32[ndarray, "T"]
    loss_mask: Bool[ndarray, "T"]
    """True where the policy produced the token."""
    behavior_logprobs: Float32[ndarray, "T"]
    """0 where `loss_mask` is False."""
    policy_versions: Int32[ndarray, "T"]
    """-1 where `loss_mask` is False."""
    advantages: Float32[ndarray, "T"]
    """The turn's advantage; 0 where `loss_mask` is False."""
    turns: Int32[ndarray, "T"]
    """The turn within its trajectory that the token belongs to, from 0; its context counts with it."""
    returns: Float32[ndarray, "T"]
    """What the critic should have said before the token's turn; NaN where no critic learns from it."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def scored_turns(self) -> Int32[ndarray, "K"]:
        """The turns with a token in the loss, in order."""
        return np.unique(self.turns[self.loss_mask])

    @property
    def num_returns(self) -> int:
        """Turns that the critic learns from."""
        return len(np.unique(self.turns[self.loss_mask & np.isfinite(self.returns)]))


class _Ragged:
    """An Arrow list column as a flat array and offsets: no Python object per token."""

    def __init__(self, table: pa.Table, name: str):
        column = table[name].combine_chunks()
        self._offsets: ndarray = column.offsets.to_numpy()
        self._values: ndarray = column.values.to_numpy()

    def __getitem__(self, row: int) -> ndarray:
        return self._values[self._offsets[row] : self._offsets[row + 1]]


def gym_advantages(
    table: pa.Table, credit_of: Callable[[str], CreditRule], *, values: ndarray | None = None
) -> ndarray:  # [num_rows]
    """`row_advantages` of one group by the rule of its gym."""
    rule = credit_of(table["gym"][0].as_py())
    return row_advantages(table, make_estimator(**asdict(rule)), values=values)


def row_advantages(
    table: pa.Table, estimator: Estimator, *, values: ndarray | None = None
) -> ndarray:  # [num_rows]
    """One group's advantages in the table's row order, NaN on each turn of a trajectory that failed or has
    no reward. `values` [num_rows] are the critic's, before each turn."""
    trajectories = table["trajectory"].to_numpy()
    rewards = np.where(table["failed"].to_numpy(), np.nan, table["reward"].to_numpy())
    inner = np.flatnonzero(np.diff(trajectories, prepend=-1))[1:]
    num_tokens = np.diff(table["completion_ids"].combine_chunks().offsets.to_numpy())
    advantages = estimator(
        np.split(rewards, inner),
        num_tokens=np.split(num_tokens, inner),
        states=turn_states(table),
        values=None if values is None else np.split(values, inner),
    )
    return np.concatenate(advantages)


def samples_from_table(
    table: pa.Table, *, advantages: ndarray, returns: ndarray | None = None
) -> list[TrainingSample]:
    """The table's samples. A trajectory that may not be trained (`drop_reasons`) gives none, and neither does
    a sample without completion tokens.

    `advantages` is [num_rows]; demonstrations pass ones. `returns` [num_rows] are what the critic learns; not
    given: nothing. Rows stand in order of (group_id, trajectory, turn).
    """
    groups, trajectories = table["group_id"].to_numpy(), table["trajectory"].to_numpy()
    gyms, turns = table["gym"].to_pylist(), table["turn"].to_numpy()
    new_trajectory = (np.diff(groups, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) != 0)
    starts = np.flatnonzero(new_trajectory | table["forked"].to_numpy())
    targets = np.full(table.num_rows, np.nan) if returns is None else returns
    dropped = drop_reasons(table, advantages=advantages)
    columns = [
        _Ragged(table, name)
        for name in ("context_ids", "completion_ids", "behavior_logprobs", "policy_versions")
    ]
    samples = []
    for first, last in pairwise([*starts.tolist(), table.num_rows]):
        key = (int(groups[first]), int(trajectories[first]))
        if key not in dropped:
            sample = _sample(
                key,
                columns,
                gym=gyms[first],
                turns=turns,
                rows=range(first, last),
                advantages=advantages,
                returns=targets,
            )
            if sample.loss_mask.any():
                samples.append(sample)
    return samples


def without_truncated(
    samples: Sequence[TrainingSample], *, tables: Sequence[pa.Table]
) -> tuple[list[TrainingSample], int]:
    """The samples of trajectories that came to an end, and how many others there were: cut off by the turns
    or the tokens they may take, which says little of how they acted (DAPO, arXiv 2503.14476 section 3.4)."""
    cut: set[tuple[int, int]] = set()
    for table in tables:
        keys = zip(table["group_id"].to_pylist(), table["trajectory"].to_pylist(), strict=True)
        cut.update(compress(keys, (StopReason(r).truncated for r in table["stop_reason"].to_pylist())))
    keys_of = {(sample.group_id, sample.trajectory) for sample in samples}
    kept = [sample for sample in samples if (sample.group_id, sample.trajectory) not in cut]
    return kept, len(keys_of & cut)


def _sample(
    key: tuple[int, int],
    columns: Sequence[_Ragged],
    *,
    gym: str,
    turns: ndarray,
    rows: range,
    advantages: ndarray,
    returns: ndarray,
) -> TrainingSample:
    """Contexts and completions of these rows, end to end."""
    context_ids, completion_ids, logprobs, versions = columns
    lengths = [len(context_ids[row]) + len(completion_ids[row]) for row in rows]
    parts: list[tuple[ndarray, ...]] = []
    for row in rows:
        num_context, num_completion = len(context_ids[row]), len(completion_ids[row])
        masked, kept = np.zeros(num_context, np.float32), np.ones(num_completion, np.float32)
        parts.append((context_ids[row], masked, masked, masked.astype(np.int32) - 1, masked))
        parts.append(
            (completion_ids[row], kept, logprobs[row], versions[row], kept * np.float32(advantages[row]))
        )
    token_ids, mask, logprob, version, advantage = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    mask = mask.astype(bool)
    mask[:1] = False  # nothing stands before a sample's first token to predict it
    return TrainingSample(
        group_id=key[0],
        trajectory=key[1],
        gym=gym,
        token_ids=token_ids,
        loss_mask=mask,
        behavior_logprobs=logprob,
        policy_versions=version,
        advantages=advantage,
        turns=np.repeat(turns[rows.start : rows.stop], lengths),
        returns=np.repeat(returns[rows.start : rows.stop].astype(np.float32), lengths),
    )
