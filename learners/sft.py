"""The cold start's own parts: what its tables give, and which demonstrations make which step. Its loss is
`loss.sft_loss`."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy import ndarray

from learners.samples import TrainingSample, samples_from_table
from learners.sft_config import SftConfig


def demonstrations_from_tables(tables: Sequence[pa.Table]) -> list[TrainingSample]:
    """All samples of the demonstrations. Rewards and behavior logprobs are not read; failed trajectories
    give none."""
    return [
        sample for table in tables for sample in samples_from_table(table, advantages=np.ones(table.num_rows))
    ]


def sample_lengths(table: pa.Table) -> ndarray:  # [num_samples]
    """Tokens of each sample of trajectories that did not fail, in order, without a look at any."""
    if not table.num_rows:
        return np.zeros(0, np.int64)
    return np.add.reduceat(_num_tokens(table), _starts(table))


def without_overlong(table: pa.Table, *, max_tokens: int) -> tuple[pa.Table, int]:
    """The trajectories whose samples all have at most `max_tokens`, and how many others there were."""
    if not table.num_rows:
        return table, 0
    starts, new = _starts(table), _is_new_trajectory(table)
    per_sample = np.diff([*starts.tolist(), table.num_rows])
    too_long = np.repeat(sample_lengths(table) > max_tokens, per_sample)
    left_out = np.logical_or.reduceat(too_long, np.flatnonzero(new))
    return table.filter(pa.array(~left_out[np.cumsum(new) - 1])), int(left_out.sum())


def _num_tokens(table: pa.Table) -> ndarray:  # [num_rows]
    offsets = (table[name].combine_chunks().offsets for name in ("context_ids", "completion_ids"))
    context, completion = (np.diff(one.to_numpy()) for one in offsets)
    return context + completion


def _is_new_trajectory(table: pa.Table) -> ndarray:  # [num_rows]
    groups, trajectories = table["group_id"].to_numpy(), table["trajectory"].to_numpy()
    return (np.diff(groups, prepend=-1) != 0) | (np.diff(trajectories, prepend=-1) != 0)


def _starts(table: pa.Table) -> ndarray:  # [num_samples]
    return np.flatnonzero(_is_new_trajectory(table) | table["forked"].to_numpy())


def num_sft_steps(config: SftConfig, *, num_samples: int) -> int:
    """Optimizer steps of the stage: `num_epochs` passes, the last batch filled up from the next pass."""
    return math.ceil(config.num_epochs * num_samples / config.batch_size)


def batch_indices(num_samples: int, *, batch_size: int, step: int, seed: int) -> list[int]:
    """The samples of this step: each pass goes through all of them once, in its own seeded order.

    A pure function of the step, so that a stopped stage goes on where it was.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        p: np.random.default_rng((seed, p)).permutation(num_samples)
        for p in {i // num_samples for i in places}
    }
    return [int(orders[i // num_samples][i % num_samples]) for i in places]
