"""SFT batches: the samples of the demonstration tables and their order over the steps. The loss is
`policy_loss.sft_loss`."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy import ndarray

from learners.batch.samples import (
    TrainingSample,
    is_new_trajectory,
    list_lengths,
    sample_starts,
    samples_from_table,
)
from learners.drop_reasons import learner_drop_reasons
from learners.sft_config import SftConfig


class DemonstrationSamples(Sequence[TrainingSample]):
    """All samples of the demonstrations, each made when indexed. Holds only the tables, which the ranks of a
    machine share in the object store, and each sample's rows.

    Rewards and behavior logprobs are ignored; failed trajectories give no sample.
    """

    def __init__(self, tables: Sequence[pa.Table]):
        self._tables = tables
        spans = [(number, *rows) for number, table in enumerate(tables) for rows in _rows_of_samples(table)]
        self._spans = np.array(spans, np.int64).reshape(-1, 3)  # table, first row, number of rows

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> TrainingSample:  # type: ignore[override]  # no slices
        number, first, num_rows = self._spans[index].tolist()
        rows = self._tables[number].slice(first, num_rows)
        (sample,) = samples_from_table(rows, advantages=np.ones(num_rows))
        return sample


def _rows_of_samples(table: pa.Table) -> list[tuple[int, int]]:
    """(first row, number of rows) of each sample that `samples_from_table` makes from the table."""
    if not table.num_rows:
        return []
    starts = sample_starts(table)
    sizes = np.diff([*starts.tolist(), table.num_rows])
    dropped = learner_drop_reasons(table, advantages=np.ones(table.num_rows))
    groups, trajectories = (table[name].to_numpy()[starts] for name in ("group_id", "trajectory"))
    keys = zip(groups.tolist(), trajectories.tolist(), strict=True)
    kept = np.array([key not in dropped for key in keys]) & _has_loss(table, starts)
    return list(zip(starts[kept].tolist(), sizes[kept].tolist(), strict=True))


def _has_loss(table: pa.Table, starts: ndarray) -> ndarray:  # [num_samples]
    """Whether the sample has a completion token that can be predicted: its first token cannot."""
    context, completion = _part_lengths(table)
    before = np.cumsum(context + completion) - context - completion
    is_first = before == np.repeat(before[starts], np.diff([*starts.tolist(), table.num_rows]))
    num_completion = np.add.reduceat(completion, starts)
    num_unpredicted = np.add.reduceat((is_first & (context == 0) & (completion > 0)).astype(np.int64), starts)
    return num_completion > num_unpredicted


def sample_lengths(table: pa.Table) -> ndarray:  # [num_samples]
    """Number of tokens of each sample of the table, in order."""
    if not table.num_rows:
        return np.zeros(0, np.int64)
    return np.add.reduceat(sum(_part_lengths(table)), sample_starts(table))


def without_overlong(table: pa.Table, *, max_tokens: int) -> tuple[pa.Table, int]:
    """The trajectories whose samples all have at most `max_tokens`, and the number of the others."""
    if not table.num_rows:
        return table, 0
    starts, new = sample_starts(table), is_new_trajectory(table)
    per_sample = np.diff([*starts.tolist(), table.num_rows])
    too_long = np.repeat(sample_lengths(table) > max_tokens, per_sample)
    left_out = np.logical_or.reduceat(too_long, np.flatnonzero(new))
    return table.filter(pa.array(~left_out[np.cumsum(new) - 1])), int(left_out.sum())


def _part_lengths(table: pa.Table) -> tuple[ndarray, ndarray]:  # [num_rows] each
    """Tokens of each row's context and of its completion."""
    return list_lengths(table["context_ids"]), list_lengths(table["completion_ids"])


def num_sft_steps(config: SftConfig, *, num_samples: int) -> int:
    """Optimizer steps of the stage: `num_epochs` passes, the last batch completed from the next pass."""
    return math.ceil(config.num_epochs * num_samples / config.batch_size)


def batch_indices(num_samples: int, *, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of this step's samples: each pass contains every sample once, in its own seeded order.

    A pure function of the step, so that a stopped stage resumes exactly.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        p: np.random.default_rng((seed, p)).permutation(num_samples)
        for p in {i // num_samples for i in positions}
    }
    return [int(orders[i // num_samples][i % num_samples]) for i in positions]
