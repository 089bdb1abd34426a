"""Training samples, read from the Arrow tables of groups and demonstrations. No model, torch or Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress, pairwise, starmap

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from actors.trajectory import StopReason
from learners.drop_reasons import learner_drop_reasons


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingSample:
    """One token sequence to train on: a trajectory, or the part of it between two forks.

    Legend: T tokens, L of them in the loss, in K turns. Most tokens are context, of which only the ids are
    kept; the loss tokens of a turn are adjacent.

    Example: 200 tokens of a dialogue whose two turns have 3 and 2 sampled tokens: `turns` [0, 1],
    `turn_starts` [120, 190], `turn_lengths` [3, 2], five `behavior_logprobs`, `advantages` [0.5, 0.5].
    """

    group_id: int
    trajectory: int
    gym: str
    token_ids: Int32[ndarray, "T"]
    behavior_logprobs: Float32[ndarray, "L"]
    policy_versions: Int32[ndarray, "L"]
    turns: Int32[ndarray, "K"]
    """The turns within its trajectory, from 0, that have a token in the loss; in order."""
    turn_starts: Int64[ndarray, "K"]
    """Position of each turn's first loss token; never 0, since nothing predicts that token."""
    turn_lengths: Int64[ndarray, "K"]
    """Number of each turn's loss tokens, at least one; they add up to L."""
    advantages: Float32[ndarray, "K"]
    returns: Float32[ndarray, "K"]
    """The critic's target before the turn; NaN if no critic learns from it."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_loss_tokens(self) -> int:
        return len(self.behavior_logprobs)

    @property
    def num_returns(self) -> int:
        """Number of turns that the critic learns from."""
        return int(np.isfinite(self.returns).sum())


def places_of(starts: Int64[ndarray, "K"], lengths: Int64[ndarray, "K"]) -> Int64[ndarray, "L"]:
    """The positions of each span: starts (5, 9) and lengths (2, 1) give 5, 6, 9."""
    positions = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    positions += np.arange(len(positions))
    return positions


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Columns:
    """A table's samples end to end, and each sample's slice of every column: S samples of N tokens, M of them
    in completions, in V turns with a token in the loss."""

    token_ids: Int32[ndarray, "N"]
    tokens_of: list[slice]  # [S]
    behavior_logprobs: Float32[ndarray, "M"]
    policy_versions: Int32[ndarray, "M"]
    loss_of: list[slice]  # [S]
    turns: Int32[ndarray, "V"]
    starts: Int64[ndarray, "V"]
    lengths: Int64[ndarray, "V"]
    advantages: Float32[ndarray, "V"]
    returns: Float32[ndarray, "V"]
    turns_of: list[slice]  # [S]

    @classmethod
    def of(
        cls, table: pa.Table, *, first_rows: ndarray, advantages: ndarray, returns: ndarray | None
    ) -> "_Columns":
        """`first_rows` [S]: each sample's first row in the table. Makes no Python object per token."""
        num_context, num_completion = (
            list_lengths(table[name]) for name in ("context_ids", "completion_ids")
        )
        ends, completion_ends = _ends(num_context + num_completion), _ends(num_completion)
        borders = [*first_rows.tolist(), table.num_rows]
        before = num_context + ends[:-1] - np.repeat(ends[first_rows], np.diff(borders))
        # Nothing predicts a sample's first token.
        unpredicted = (before == 0) & (num_completion > 0)
        lengths = num_completion - unpredicted
        said = np.flatnonzero(lengths)
        loss_begins = completion_ends[first_rows] + np.add.reduceat(unpredicted, first_rows, dtype=np.int64)
        return cls(
            token_ids=_interleaved(_views(table["context_ids"]), _views(table["completion_ids"])),
            tokens_of=_between(ends[borders]),
            behavior_logprobs=_values(table["behavior_logprobs"]),
            policy_versions=_values(table["policy_versions"]),
            loss_of=list(map(slice, loss_begins.tolist(), completion_ends[borders[1:]].tolist())),
            turns=table["turn"].to_numpy()[said],
            starts=(before + unpredicted)[said],
            lengths=lengths[said],
            advantages=advantages[said].astype(np.float32),
            returns=np.full(len(said), np.nan, np.float32)
            if returns is None
            else returns[said].astype(np.float32),
            turns_of=_between(np.searchsorted(said, borders)),
        )


def _between(borders: ndarray) -> list[slice]:
    return list(starmap(slice, pairwise(borders.tolist())))


def _interleaved(first: Sequence[ndarray], second: Sequence[ndarray]) -> ndarray:
    """The arrays of both in turn, end to end, each copied once."""
    return np.concatenate(list(chain.from_iterable(zip(first, second, strict=True))))


def _values(column: pa.ChunkedArray) -> ndarray:  # [num_values]
    """The values of a list column end to end."""
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])


def _views(column: pa.ChunkedArray) -> list[ndarray]:  # [num_rows]
    """Each row's values of a list column, without copying."""
    views: list[ndarray] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy()
        views += [values[begin:end] for begin, end in pairwise(chunk.offsets.to_numpy().tolist())]
    return views


def list_lengths(column: pa.ChunkedArray) -> Int64[ndarray, "num_rows"]:
    """Number of values in each row of a list column."""
    return pc.call_function("list_value_length", [column]).to_numpy().astype(np.int64)


def _ends(lengths: Int64[ndarray, "n"]) -> Int64[ndarray, "n_plus_one"]:
    """Offsets of parts end to end: 0, then the end of each."""
    return np.concatenate([[0], np.cumsum(lengths)])


def is_new_trajectory(table: pa.Table) -> ndarray:  # [num_rows]
    """True at each trajectory's first row. Rows are in order of (group_id, trajectory, turn)."""
    groups, trajectories = table["group_id"].to_numpy(), table["trajectory"].to_numpy()
    return (np.diff(groups, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) != 0)


def sample_starts(table: pa.Table) -> ndarray:  # [num_samples]
    """Each sample's first row: of a trajectory, and at each fork."""
    return np.flatnonzero(is_new_trajectory(table) | table["forked"].to_numpy())


def samples_from_table(
    table: pa.Table, *, advantages: ndarray, returns: ndarray | None = None
) -> list[TrainingSample]:
    """The table's samples. A trajectory that may not be trained (`learner_drop_reasons`) gives none, and
    neither does a sample without completion tokens.

    `advantages` is [num_rows], ones for demonstrations. `returns` [num_rows] are the critic's targets; None
    means that it learns nothing. Rows are in order of (group_id, trajectory, turn).
    """
    if not table.num_rows:
        return []
    groups, trajectories = table["group_id"].to_numpy(), table["trajectory"].to_numpy()
    starts = sample_starts(table)
    gyms = table["gym"].take(pa.array(starts)).to_pylist()
    dropped = learner_drop_reasons(table, advantages=advantages)
    columns = _Columns.of(table, first_rows=starts, advantages=advantages, returns=returns)
    keys = zip(groups[starts].tolist(), trajectories[starts].tolist(), strict=True)
    slices = zip(columns.tokens_of, columns.loss_of, columns.turns_of, strict=True)
    return [
        TrainingSample(
            group_id=key[0],
            trajectory=key[1],
            gym=gym,
            token_ids=columns.token_ids[tokens],
            behavior_logprobs=columns.behavior_logprobs[loss],
            policy_versions=columns.policy_versions[loss],
            turns=columns.turns[turns],
            turn_starts=columns.starts[turns],
            turn_lengths=columns.lengths[turns],
            advantages=columns.advantages[turns],
            returns=columns.returns[turns],
        )
        for key, gym, (tokens, loss, turns) in zip(keys, gyms, slices, strict=True)
        if turns.start < turns.stop and key not in dropped
    ]


def without_truncated(
    samples: Sequence[TrainingSample], *, tables: Sequence[pa.Table]
) -> tuple[list[TrainingSample], int]:
    """The samples of trajectories that ended by themselves, and the number of the others, which reached the
    limit of turns or tokens (DAPO, arXiv 2503.14476 section 3.4)."""
    truncated: set[tuple[int, int]] = set()
    for table in tables:
        keys = zip(table["group_id"].to_pylist(), table["trajectory"].to_pylist(), strict=True)
        truncated.update(compress(keys, (StopReason(r).truncated for r in table["stop_reason"].to_pylist())))
    keys_of = {(sample.group_id, sample.trajectory) for sample in samples}
    kept = [sample for sample in samples if (sample.group_id, sample.trajectory) not in truncated]
    return kept, len(keys_of & truncated)
