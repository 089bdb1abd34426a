"""Selection of the best trajectories of earlier runs from their archives, with the token ids as sampled.

A file of the archive is one step's groups. All of them are looked through without their tokens, a file at a
time; tokens are read of what was chosen, and of nothing else.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from math import isfinite
from operator import or_
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from actors.renderer import Renderer
from actors.trajectory import StopReason, as_ids
from actors.trajectory_table import SCHEMA, SCORED
from simulators.message import Message

MOST_PER_TASK = 2
"""A second way to do a task teaches something, a third hardly."""
DIGITS = 9
"""Scores that differ by less are equal: sums of the same parts in another order do."""
ONE_TRAJECTORY = ("group_id", "trajectory", "gym", "task_id", "step")
SCANNED = (*ONE_TRAJECTORY, "turn", "env_reward", "stop_reason", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedTrajectory:
    """Where a trajectory lies, and what it is ranked by."""

    file: Path
    group_id: int
    trajectory: int
    gym: str
    task_id: str
    score: float
    """Sum of its environment rewards."""
    num_turns: int
    step: int
    rank_in_task: int = 0
    """How many better ones of the same task there are."""

    @property
    def key(self) -> tuple[float, int, int, str, int, int]:
        """Lower is better: the score, then fewer turns, then the newest; then whatever makes it certain."""
        return -self.score, self.num_turns, -self.step, str(self.file), self.group_id, self.trajectory


def archive_files(run: Path) -> list[Path]:
    """The steps' files of a run folder, oldest first; evaluations, whose tasks are held out, are not among
    them."""
    return sorted((run / "trajectories").glob("step-*.parquet"))


def best_trajectories(
    runs: Sequence[Path], *, gyms: Sequence[str], per_gym: int
) -> dict[str, list[ArchivedTrajectory]]:
    """By gym, the best of what these runs' policies did on training tasks, best first.

    A trajectory counts if the environment itself ended it and its score is above 0. The best of each task
    comes before the second best of any. Raises ValueError for a file that is no archive.
    """
    kept: dict[str, list[ArchivedTrajectory]] = {gym: [] for gym in gyms}
    for file in chain.from_iterable(map(archive_files, runs)):
        found: dict[str, list[ArchivedTrajectory]] = {gym: [] for gym in gyms}
        for trajectory in _finished(file, gyms=gyms):
            found[trajectory.gym].append(trajectory)
        for gym in gyms:
            # A later file only ever lowers a place, so what falls out here would not have come back.
            kept[gym] = _ranked([*kept[gym], *found[gym]])[:per_gym]
    return kept


def _finished(file: Path, *, gyms: Sequence[str]) -> Iterator[ArchivedTrajectory]:
    """What a file holds of these gyms' training tasks, finished and with a score."""
    wanted = (
        ds.field("gym").isin(list(gyms))
        & (ds.field("stop_reason") == str(StopReason.TERMINATED))
        & ~ds.field("failed")
    )
    table = _read(file, columns=SCANNED, where=wanted)
    sums = table.group_by(list(ONE_TRAJECTORY), use_threads=False).aggregate(
        [("env_reward", "sum"), ("turn", "count")]
    )
    for row in sums.to_pylist():
        score = row["env_reward_sum"]
        # The split is part of a task's name; a demonstration from the others would spoil every evaluation.
        if not row["task_id"].startswith(f"{row['gym']}-train-") or score is None or not isfinite(score):
            continue
        if round(score, DIGITS) > 0:
            yield ArchivedTrajectory(
                file=file,
                score=round(score, DIGITS),
                num_turns=row["turn_count"],
                **{name: row[name] for name in ONE_TRAJECTORY},
            )


def _ranked(trajectories: Sequence[ArchivedTrajectory]) -> list[ArchivedTrajectory]:
    """The best of each task, best first, then the second best of each; no more of any task."""
    seen: Counter[str] = Counter()
    ranked: list[ArchivedTrajectory] = []
    for trajectory in sorted(trajectories, key=lambda one: one.key):
        rank = seen[trajectory.task_id]
        seen[trajectory.task_id] += 1
        if rank < MOST_PER_TASK:
            ranked.append(replace(trajectory, rank_in_task=rank))
    return sorted(ranked, key=lambda one: (one.rank_in_task, one.key))


def load_trajectories(chosen: Sequence[ArchivedTrajectory], *, renderer: Renderer) -> pa.Table:
    """The chosen trajectories as one table, a group each. Raises ValueError where another tokenizer or chat
    template than the renderer's made their tokens."""
    tables: list[pa.Table] = []
    num_groups = 0
    for file in dict.fromkeys(one.file for one in chosen):
        pairs = [(one.group_id, one.trajectory) for one in chosen if one.file == file]
        one_of = reduce(
            or_,
            ((ds.field("group_id") == group) & (ds.field("trajectory") == index) for group, index in pairs),
        )
        table = _read(file, columns=SCORED.names, where=one_of)
        check_tokens(table, renderer=renderer, file=file)
        new = np.diff(table["group_id"].to_numpy(), prepend=-1) != 0
        new |= np.diff(table["trajectory"].to_numpy(), prepend=-1) != 0
        ids = pa.array(num_groups + np.cumsum(new) - 1, pa.int64())
        num_groups += int(new.sum())
        table = table.set_column(table.schema.get_field_index("group_id"), "group_id", ids)
        tables.append(table.cast(pa.schema([SCORED.field(name) for name in table.column_names])))
    return pa.concat_tables(tables, promote_options="default") if tables else SCHEMA.empty_table()


def check_tokens(table: pa.Table, *, renderer: Renderer, file: Path) -> None:
    """Each completion must read as its text, each opening must render to its ids. Raises ValueError."""
    names = ("turn", "system", "opening", "text", "context_ids", "completion_ids")
    for row in table.select(list(names)).to_pylist():
        same = renderer.decode(as_ids(row["completion_ids"])) == row["text"]
        if same and row["turn"] == 0:
            opening = [
                Message(role="system", content=row["system"]),
                Message(role="user", content=row["opening"]),
            ]
            same = list(renderer.begin(opening).context_ids) == row["context_ids"]
        if not same:
            raise ValueError(
                f"{file}: its tokens are not this policy's: the run had another tokenizer or chat template: "
                "leave the run out of sft.runs, or train the policy that it trained"
            )


def _read(file: Path, *, columns: Sequence[str], where: pc.Expression) -> pa.Table:
    """These columns of the rows that fit, in the file's order; those that only a newer archive has may be
    missing."""
    try:
        dataset = ds.dataset(file, format="parquet")
        needed = {*SCANNED, "forked", "context_ids", "completion_ids", "text", "system", "opening"}
        missing = sorted(needed - set(dataset.schema.names))
        if missing:
            raise ValueError(f"{file}: no archive of a run, it has no column {missing[0]!r}: take it away")
        return dataset.to_table(
            columns=[name for name in columns if name in dataset.schema.names], filter=where
        ).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read as Parquet ({reason[:120]}): take it away") from None
