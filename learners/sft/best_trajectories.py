"""Selection of the best trajectories of earlier runs from their archives, with the token ids as sampled.

A file of the archive holds one step's groups. Files are scanned one at a time without their tokens; tokens
are read for the selected trajectories only.
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
"""Trajectories selected per task: a second solution still adds something, a third hardly."""
DIGITS = 9
"""Digits of scores that are compared: sums of the same parts in another order differ beyond them."""
ONE_TRAJECTORY = ("group_id", "trajectory", "gym", "task_id", "step")
SCANNED = (*ONE_TRAJECTORY, "turn", "env_reward", "stop_reason", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedTrajectory:
    """Location of a trajectory in an archive, and the numbers that it is ranked by."""

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
    """Number of better trajectories of the same task."""

    @property
    def key(self) -> tuple[float, int, int, str, int, int]:
        """Sort key, best first: score, fewer turns, newer step; the rest makes the order unique."""
        return -self.score, self.num_turns, -self.step, str(self.file), self.group_id, self.trajectory


def archive_files(run: Path) -> list[Path]:
    """The steps' files of a run folder, oldest first, without evaluations, whose tasks are held out."""
    return sorted((run / "trajectories").glob("step-*.parquet"))


def best_trajectories(
    runs: Sequence[Path], *, gyms: Sequence[str], per_gym: int
) -> dict[str, list[ArchivedTrajectory]]:
    """By gym, the best trajectories of these runs on training tasks, best first.

    A trajectory counts if the environment ended it and its score is above 0. The best of each task comes
    before the second best of any task. Raises ValueError for a file that is not an archive.
    """
    kept: dict[str, list[ArchivedTrajectory]] = {gym: [] for gym in gyms}
    for file in chain.from_iterable(map(archive_files, runs)):
        found: dict[str, list[ArchivedTrajectory]] = {gym: [] for gym in gyms}
        for trajectory in _finished(file, gyms=gyms):
            found[trajectory.gym].append(trajectory)
        for gym in gyms:
            # Later files only lower ranks: what is cut here could not have come back.
            kept[gym] = _ranked([*kept[gym], *found[gym]])[:per_gym]
    return kept


def _finished(file: Path, *, gyms: Sequence[str]) -> Iterator[ArchivedTrajectory]:
    """The file's trajectories on these gyms' training tasks that finished with a score above 0."""
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
        # Tasks of other splits are excluded: they would contaminate evaluations.
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
    """The best of each task, best first, then the second best of each task."""
    seen: Counter[str] = Counter()
    ranked: list[ArchivedTrajectory] = []
    for trajectory in sorted(trajectories, key=lambda one: one.key):
        rank = seen[trajectory.task_id]
        seen[trajectory.task_id] += 1
        if rank < MOST_PER_TASK:
            ranked.append(replace(trajectory, rank_in_task=rank))
    return sorted(ranked, key=lambda one: (one.rank_in_task, one.key))


def load_trajectories(chosen: Sequence[ArchivedTrajectory], *, renderer: Renderer) -> pa.Table:
    """The chosen trajectories as one table, one group each. Raises ValueError if their tokens are from
    another tokenizer or chat template than the renderer's."""
    tables: list[pa.Table] = []
    num_groups = 0
    for file in dict.fromkeys(one.file for one in chosen):
        pairs = [(one.group_id, one.trajectory) for one in chosen if one.file == file]
        is_chosen = reduce(
            or_,
            ((ds.field("group_id") == group) & (ds.field("trajectory") == index) for group, index in pairs),
        )
        table = _read(file, columns=SCORED.names, where=is_chosen)
        check_tokens(table, renderer=renderer, file=file)
        new = np.diff(table["group_id"].to_numpy(), prepend=-1) != 0
        new |= np.diff(table["trajectory"].to_numpy(), prepend=-1) != 0
        ids = pa.array(num_groups + np.cumsum(new) - 1, pa.int64())
        num_groups += int(new.sum())
        table = table.set_column(table.schema.get_field_index("group_id"), "group_id", ids)
        tables.append(table.cast(pa.schema([SCORED.field(name) for name in table.column_names])))
    return pa.concat_tables(tables, promote_options="default") if tables else SCHEMA.empty_table()


def check_tokens(table: pa.Table, *, renderer: Renderer, file: Path) -> None:
    """Raises ValueError unless every completion decodes to its text and every opening renders to its ids."""
    names = ("turn", "system", "opening", "text", "context_ids", "completion_ids")
    for row in table.select(list(names)).to_pylist():
        matches = renderer.decode(as_ids(row["completion_ids"])) == row["text"]
        if matches and row["turn"] == 0:
            opening = [
                Message(role="system", content=row["system"]),
                Message(role="user", content=row["opening"]),
            ]
            matches = list(renderer.begin(opening).context_ids) == row["context_ids"]
        if not matches:
            raise ValueError(
                f"{file}: its tokens are not this policy's: the run had another tokenizer or chat template: "
                "leave the run out of sft.runs, or train the policy that it trained"
            )


def _read(file: Path, *, columns: Sequence[str], where: pc.Expression) -> pa.Table:
    """These columns of the matching rows, in the file's order; optional columns may be missing."""
    try:
        dataset = ds.dataset(file, format="parquet")
        needed = {*SCANNED, "forked", "context_ids", "completion_ids", "text", "system", "opening"}
        missing = sorted(needed - set(dataset.schema.names))
        if missing:
            raise ValueError(f"{file}: not an archive of a run, it has no column {missing[0]!r}: remove it")
        return dataset.to_table(
            columns=[name for name in columns if name in dataset.schema.names], filter=where
        ).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read as Parquet ({reason[:120]}): remove it") from None
