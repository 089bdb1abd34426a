"""Samples to train on, read from the Arrow tables of groups and demonstrations. Knows no model, no torch,
no Ray."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import compress, pairwise, starmap

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
    def of(cls, table: pa.Table, *, advantages: ndarray, returns: ndarray | None) -> "_Tokens":
        """No Python object per token: whole columns are laid out at once."""
        context_ids, num_context = _ragged(table, "context_ids")
        completion_ids, num_completion = _ragged(table, "completion_ids")
        num_tokens = num_context + num_completion
        offsets = np.concatenate([[0], np.cumsum(num_tokens)])
        # Where each completion token goes: far fewer places to write to than a mask has to ask.
        shifts = offsets[:-1] + num_context - (np.cumsum(num_completion) - num_completion)
        said = np.repeat(shifts, num_completion) + np.arange(len(completion_ids))

        def laid_out(values: ndarray | bool, *, elsewhere: float, dtype: type) -> ndarray:
            everywhere = np.full(offsets[-1], elsewhere, dtype) if elsewhere else np.zeros(offsets[-1], dtype)
            everywhere[said] = values
            return everywhere

        return cls(
            offsets=offsets,
            token_ids=_interleaved(context_ids, num_context, completion_ids, num_completion),
            loss_mask=laid_out(True, elsewhere=0, dtype=np.bool_),
            behavior_logprobs=laid_out(_ragged(table, "behavior_logprobs")[0], elsewhere=0, dtype=np.float32),
            policy_versions=laid_out(_ragged(table, "policy_versions")[0], elsewhere=-1, dtype=np.int32),
            advantages=laid_out(
                np.repeat(advantages.astype(np.float32), num_completion), elsewhere=0, dtype=np.float32
            ),
            turns=np.repeat(table["turn"].to_numpy(), num_tokens),
            returns=np.broadcast_to(np.float32(np.nan), offsets[-1])
            if returns is None
            else np.repeat(returns.astype(np.float32), num_tokens),
        )


def _interleaved(first: ndarray, first_lengths: ndarray, second: ndarray, second_lengths: ndarray) -> ndarray:
    """A part of `first`, a part of `second`, and so on: one copy of each part."""
    parts: list[ndarray] = [first[:0]] * (2 * len(first_lengths))
    for place, values, lengths in ((0, first, first_lengths), (1, second, second_lengths)):
        ends = [0, *np.cumsum(lengths).tolist()]
        parts[place::2] = [values[begin:end] for begin, end in pairwise(ends)]
    return np.concatenate(parts) if parts else first


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
    return row_advantages(
        table, _estimator_of(rule), values=values, with_states=rule.estimator.compares_states
    )


@lru_cache
def _estimator_of(rule: CreditRule) -> Estimator:
    return make_estimator(**asdict(rule))


def row_advantages(
    table: pa.Table, estimator: Estimator, *, values: ndarray | None = None, with_states: bool = True
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
        states=turn_states(table) if with_states else None,
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
    new_trajectory = (np.diff(groups, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) != 0)
    starts = np.flatnonzero(new_trajectory | table["forked"].to_numpy())
    gyms = table["gym"].take(pa.array(starts)).to_pylist()
    dropped = drop_reasons(table, advantages=advantages)
    tokens = _Tokens.of(table, advantages=advantages, returns=returns)
    # Nothing stands before a sample's first token to predict it; a row without tokens may end the table.
    firsts = tokens.offsets[starts]
    tokens.loss_mask[firsts[firsts < len(tokens.loss_mask)]] = False
    places = starmap(slice, pairwise([*firsts.tolist(), len(tokens.loss_mask)]))
    keys = zip(groups[starts].tolist(), trajectories[starts].tolist(), strict=True)
    samples = []
    for key, gym, place in zip(keys, gyms, places, strict=True):
        if key not in dropped and tokens.loss_mask[place].any():
            samples.append(
                TrainingSample(
                    group_id=key[0],
                    trajectory=key[1],
                    gym=gym,
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
