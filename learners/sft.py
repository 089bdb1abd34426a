"""The cold start's own parts: which demonstrations make which step. Its loss is `loss.sft_loss`."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from learners.samples import TrainingSample, samples_from_table
from learners.sft_config import SftConfig


def demonstrations_from_tables(tables: Sequence[pa.Table]) -> list[TrainingSample]:
    """All samples of the demonstrations. Rewards and behavior logprobs are not read; failed trajectories
    give none."""
    return [
        sample for table in tables for sample in samples_from_table(table, advantages=np.ones(table.num_rows))
    ]


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
