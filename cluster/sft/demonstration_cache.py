"""Cache of played demonstrations in the run folder: a resumed run imitates the same ones and replays only
those that failed.

An actor on the driver's node reads and writes the files, so the driver holds references only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError

from actors.trajectory import GroupOrder
from actors.trajectory_table import SCORED
from cluster.console.events import first_line
from cluster.console.log import warn
from cluster.ray_cluster.start import actor_on_driver_node
from learners.buffer.archive import write_tables

ORDERS_PER_FILE = 256
"""Dialogues that one rollout actor plays at a time."""
WRITE_TIMEOUT_S = 60.0
"""Longest wait for a slow disk, once all are played."""
FILE_NAME = re.compile(r"\d{6,}-(\d{2,})\.parquet")
"""Its first group, and which start of the run it is that played it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedFile:
    """What a file holds."""

    path: Path
    group_ids: frozenset[int] = frozenset()
    failed_ids: frozenset[int] = frozenset()
    """Those whose dialogue failed."""
    trouble: str = ""
    """Why it cannot be used: it holds nothing then."""


class DemonstrationCacheActor:
    """A Ray actor with one thread."""

    def read(self, folder: Path) -> Iterator[CachedFile | pa.Table | None]:
        """Of each file its table, and then what it holds. One that cannot be used has no table, and gets
        another name: what is played in its place must not meet it again."""
        for path in sorted(path for path in folder.glob("*.parquet") if FILE_NAME.fullmatch(path.name)):
            table, trouble = _read(path)
            yield table
            if table is None:
                with suppress(OSError):
                    path.rename(path.with_suffix(".unusable"))
                yield CachedFile(path=path, trouble=trouble)
            else:
                group_ids = frozenset(table["group_id"].to_pylist())
                failed_ids = frozenset(table.filter(pc.field("failed"))["group_id"].to_pylist())
                yield CachedFile(path=path, group_ids=group_ids, failed_ids=failed_ids)

    def write(self, path: Path, table: pa.Table) -> str:
        """What went wrong; empty where nothing did."""
        try:
            write_tables(path, [table])
        except (OSError, pa.ArrowException) as error:
            return first_line(error)
        return ""


def _read(path: Path) -> tuple[pa.Table | None, str]:
    """The file's table, or why it cannot be used."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        return None, f"cannot be read ({first_line(error)})"
    return (table, "") if table.schema == SCORED else (None, "is of another version")


class DemonstrationCache:
    """The tables of one run's demonstrations. Ray must run.

    Disk errors are reported and stop nothing: unreadable demonstrations are replayed, unwritten ones are
    missing after a resume.
    """

    def __init__(self, folder: Path):
        """Reads what is there."""
        self._folder = folder
        self._actor = actor_on_driver_node(DemonstrationCacheActor, max_concurrency=1).remote()
        self._played: list[CachedFile] = []
        self._tables: dict[str, ray.ObjectRef] = {}
        """By file."""
        self._writing: dict[str, ray.ObjectRef] = {}
        try:
            self._read()
        except RayError as error:
            warn(f"{folder} was not read to its end ({first_line(error)}): the rest is played again")
            self._actor = actor_on_driver_node(DemonstrationCacheActor, max_concurrency=1).remote()

    def _read(self) -> None:
        reading = self._actor.read.options(num_returns="streaming").remote(self._folder)
        for table in reading:
            # What a file holds comes after its table, which is stored then; last is the error of an actor
            # that has died.
            played: Any = ray.get(next(reading, table))
            if played.trouble:
                warn(f"{played.path} {played.trouble}: its dialogues are played again")
            else:
                self._played.append(played)
                self._tables[played.path.name] = table

    @property
    def tables(self) -> list[ray.ObjectRef]:
        """All tables, in an order that does not depend on timing."""
        return [self._tables[name] for name in sorted(self._tables)]

    def missing(self, orders: Sequence[GroupOrder], *, are_failed_missing: bool) -> list[GroupOrder]:
        """Orders without a cached dialogue."""
        there: set[int] = set()
        for played in self._played:
            there |= played.group_ids - played.failed_ids if are_failed_missing else played.group_ids
        return [order for order in orders if order.group_id not in there]

    def files_for(self, orders: Sequence[GroupOrder]) -> Mapping[str, Sequence[GroupOrder]]:
        """The files to come, by name."""
        names = (FILE_NAME.fullmatch(played.path.name) for played in self._played)
        start = max((int(name[1]) for name in names if name), default=0) + 1
        chunks = [orders[first : first + ORDERS_PER_FILE] for first in range(0, len(orders), ORDERS_PER_FILE)]
        return {f"{chunk[0].group_id:06d}-{start:02d}.parquet": chunk for chunk in chunks}

    def add(self, name: str, table: ray.ObjectRef) -> None:
        """Begins to write a file; returns at once."""
        self._tables[name] = table
        self._writing[name] = self._actor.write.remote(self._folder / name, table)

    def finish(self) -> None:
        """Waits until all are written, and says what was not."""
        if self._writing:
            ray.wait(list(self._writing.values()), num_returns=len(self._writing), timeout=WRITE_TIMEOUT_S)
        troubles = {name: trouble for name, ref in self._writing.items() if (trouble := _trouble(ref))}
        if troubles:
            name, trouble = next(iter(troubles.items()))
            warn(
                f"{len(troubles)} of {len(self._writing)} files of demonstrations were not written "
                f"({self._folder / name}: {trouble}): a run that resumes after a kill lacks them"
            )


def _trouble(written: ray.ObjectRef) -> str:
    try:
        return ray.get(written, timeout=0)
    except TimeoutError:
        return f"the disk has not taken it within {WRITE_TIMEOUT_S:.0f} s"
    except RayError as error:
        return first_line(error)
