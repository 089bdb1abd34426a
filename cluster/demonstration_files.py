"""The demonstrations that a run's experts have played, in its folder: a run that goes on imitates the same
ones, and has none of them played again."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError

from actors.trajectory import GroupOrder
from cluster.console import warn
from learners.archive import FETCH_TIMEOUT_S, write_tables


class DemonstrationFiles:
    """A Parquet file for the table of each chunk of orders, named by its first and last group. They are
    written in a thread, beside those still played; use it in `with`, whose end waits for the last.

    A disk that refuses one is said once and stops nothing: after a kill its dialogues are played again.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._has_failed = False

    def __enter__(self) -> Self:
        self._disk = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disk.shutdown()

    def read(self, chunks: Mapping[int, Sequence[GroupOrder]]) -> dict[int, pa.Table]:
        """The tables of those chunks that an earlier start has played, by their keys."""
        tables: dict[int, pa.Table] = {}
        for key, orders in chunks.items():
            path = self._path(orders)
            try:
                if path.exists():
                    tables[key] = pq.read_table(path)
            except (OSError, pa.ArrowException) as failure:
                self._warn(f"{path} cannot be read ({failure}): its dialogues are played again")
        return tables

    def write(self, orders: Sequence[GroupOrder], table: ray.ObjectRef) -> None:
        """Begins to keep a chunk's table; returns at once."""
        self._disk.submit(self._write, self._path(orders), table)

    def _write(self, path: Path, table: ray.ObjectRef) -> None:
        try:
            write_tables(path, [ray.get(table, timeout=FETCH_TIMEOUT_S)])
        except (OSError, pa.ArrowException, RayError) as failure:
            self._warn(f"{path} was not written ({failure}): after a kill its dialogues are played again")

    def _warn(self, text: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            warn(text)

    def _path(self, orders: Sequence[GroupOrder]) -> Path:
        return self._folder / f"{orders[0].group_id:06d}-{orders[-1].group_id:06d}.parquet"
