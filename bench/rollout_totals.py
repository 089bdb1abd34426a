"""Totals of a benchmarked rollout: dialogues, turns, tokens, seconds and scores, for ours and TRL's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """The work that was done, and its time."""

    seconds: float
    num_trajectories: int
    num_turns: int
    """Calls that the environment answered."""
    num_tokens: int
    """Sampled by the policy."""


def played(tables: Sequence[pa.Table], *, seconds: float) -> Played:
    """Counts groups' tables. Raises RuntimeError where a dialogue failed: then the work was another."""
    table = pa.concat_tables(tables)
    errors = table.filter(table["failed"])["error"].to_pylist()
    if errors:
        raise RuntimeError(f"{len(errors)} turns of failed dialogues, the first by {errors[0]}")
    return Played(
        seconds=seconds,
        num_trajectories=sum(1 + max(one["trajectory"].to_pylist()) for one in tables),
        num_turns=table.num_rows - table["choice"].null_count,
        num_tokens=int(np.diff(table["completion_ids"].combine_chunks().offsets.to_numpy()).sum()),
    )
