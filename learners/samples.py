"""Samples to train on, read from the Arrow tables of groups and demonstrations. Knows no model, no torch,
no Ray."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32, Int64
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Tokens:
    """All tokens of a table end to end, each turn's context before its completion; N of them."""

    offsets: Int64[ndarray, "num_rows_plus_one"]
    """Where each row's tokens begin."""
    token_ids: Int32[ndarray, "N"]
    loss_mask: Bool[ndarray, "N"]
    behavior_logprobs: Float32[ndarray, "N"]
    policy_versions: Int32[ndarray, "N"]
    advantages: Float32[ndarray, "N"]
    turns: Int32[ndarray, "N"]
    returns: Float32[ndarray, "N"]

    @classmethod
    def of(cls, table: pa.Table, *, advantages: ndarray, returns: ndarray) -> "_Tokens":
        """No Python object per token or turn: whole columns are laid out at once."""
        context_ids, num_context = _ragged(table, "context_ids")
        completion_ids, num_completion = _ragged(table, "completion_ids")
        num_tokens = num_context + num_completion
        is_completion = np.tile([False, True], table.num_rows)
        mask = np.repeat(is_completion, np.stack([num_context, num_completion], axis=1).ravel())
        token_ids = np.empty(len(mask), np.int32)
        token_ids[mask], token_ids[~mask] = completion_ids, context_ids

        def laid_out(values: ndarray, *, elsewhere: float, dtype: type) -> ndarray:
            everywhere = np.full(len(mask), elsewhere, dtype)
            everywhere[mask] = values
            return everywhere

        return cls(
            offsets=np.concatenate([[0], np.cumsum(num_tokens)]),
            token_ids=token_ids,
            loss_mask=mask,
            behavior_logprobs=laid_out(_ragged(table, "behavior_logprobs")[0], elsewhere=0, dtype=np.float32),
            policy_versions=laid_out(_ragged(table, "policy_versions")[0], elsewhere=-1, dtype=np.int32),
            advantages=laid_out(
                np.repeat(advantages.astype(np.float32), num_completion), elsewhere=0, dtype=np.float32
            ),
            turns=np.repeat(table["turn"].to_numpy(), num_tokens),
            returns=np.repeat(returns.astype(np.float32), num_tokens),
        )


def _ragged(table: pa.Table, name: str) -> tuple[ndarray, ndarray]:
    """An Arrow list column as its values end to end, and each row's length."""
    column = table[name].combine_chunks()
    offsets = column.offsets.to_numpy()
    return column.values.to_numpy()[offsets[0] : offsets[-1]], np.diff(offsets)


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
    gyms = table["gym"].to_pylist()
    new_trajectory = (np.diff(groups, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) != 0)
    starts = np.flatnonzero(new_trajectory | table["forked"].to_numpy())
    targets = np.full(table.num_rows, np.nan) if returns is None else returns
    dropped = drop_reasons(table, advantages=advantages)
    tokens = _Tokens.of(table, advantages=advantages, returns=targets)
    # Nothing stands before a sample's first token to predict it; a row without tokens may end the table.
    tokens.loss_mask[tokens.offsets[starts][tokens.offsets[starts] < len(tokens.loss_mask)]] = False
    samples = []
    for first, last in pairwise([*starts.tolist(), table.num_rows]):
        key = (int(groups[first]), int(trajectories[first]))
        place = slice(int(tokens.offsets[first]), int(tokens.offsets[last]))
        if key not in dropped and tokens.loss_mask[place].any():
            samples.append(
                TrainingSample(
                    group_id=key[0],
                    trajectory=key[1],
                    gym=gyms[first],
                    token_ids=tokens.token_ids[place],
                    loss_mask=tokens.loss_mask[place],
                    behavior_logprobs=tokens.behavior_logprobs[place],
                    policy_versions=tokens.policy_versions[place],
                    advantages=tokens.advantages[place],
                    turns=tokens.turns[place],
                    returns=tokens.returns[place],
                )
            )
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
