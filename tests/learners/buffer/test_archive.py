"""The archive for its readers: complete files of one schema, at any moment of a run."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ObjectLostError

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupOrder, StopReason
from actors.trajectory_table import SCHEMA
from learners.buffer import archive
from learners.buffer.archive import Archive, write_tables
from learners.buffer.credit_columns import CREDITS
from tests.fakes import credited, make_key, make_summary
from tests.learners.tiny_parts import make_table, make_turn


def group(group_id: int) -> pa.Table:
    turns = [[make_turn([1, 2], [3, 4], reward=float(i), forked=True)] for i in range(2)]
    return make_table([(one, StopReason.TERMINATED) for one in turns], group_id=group_id)


async def fetched(table: pa.Table) -> pa.Table:
    return table


def finished(group_id: int, *, outcomes: Sequence[str]) -> FinishedGroup:
    order = GroupOrder(group_id=group_id, task_key=make_key(), group_size=2, seed=0)
    summary = make_summary([0.0, 1.0])
    payload = fetched(credited(group(group_id)).table)
    return FinishedGroup(order=order, summary=summary, payload=payload, outcomes=outcomes)


async def write_step(folder: Archive, step: int) -> None:
    folder.end_step([finished(step, outcomes=("trained", "flat"))], step=step)
    await folder.flush()


def with_pandas(folder: Path) -> tuple[int, float]:
    frame: Any = pd.read_parquet(folder)
    return len(frame), float(frame["reward"].sum())


def with_dataset(folder: Path) -> tuple[int, float]:
    table = ds.dataset(folder).to_table(columns=["reward"])
    return table.num_rows, sum(table["reward"].to_pylist())


def with_polars(folder: Path) -> tuple[int, float]:
    polars: Any = pytest.importorskip("polars")
    frame = polars.read_parquet(folder / "*.parquet")
    return len(frame), float(frame["reward"].sum())


def with_duckdb(folder: Path) -> tuple[int, float]:
    duckdb: Any = pytest.importorskip("duckdb")
    return duckdb.sql(f"select count(*), sum(reward) from '{folder}/*.parquet'").fetchall()[0]


@pytest.mark.parametrize("read", [with_pandas, with_dataset, with_polars, with_duckdb])
async def test_the_folder_can_be_read_after_every_step_of_a_running_run(tmp_path: Path, read: Any):
    folder = Archive(tmp_path)
    for step in range(1, 4):
        await write_step(folder, step)
        assert await asyncio.to_thread(read, tmp_path) == (2 * step, 1.0 * step)


@pytest.mark.parametrize("read", [with_pandas, with_dataset, with_polars, with_duckdb])
def test_an_unfinished_file_is_invisible_to_readers(
    tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
):
    write_tables(tmp_path / "step-00001.parquet", [group(1)])
    seen: list[tuple[int, float]] = []
    write = pq.write_table

    def write_and_look(table: pa.Table, where: Path, **options: Any) -> None:
        write(table, where, **options)
        where.write_bytes(where.read_bytes()[:100])  # as a half-written file
        seen.append(read(tmp_path))
        assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["step-00001.parquet"]
        write(table, where, **options)

    monkeypatch.setattr(archive.pq, "write_table", write_and_look)
    write_tables(tmp_path / "step-00002.parquet", [group(2)])
    assert seen == [(2, 1.0)] and read(tmp_path) == (4, 2.0)


async def test_files_have_the_tables_own_columns_in_their_order(tmp_path: Path):
    await write_step(Archive(tmp_path), 1)
    schema = pq.read_schema(tmp_path / "step-00001.parquet")
    assert schema.names == [*SCHEMA.names, "reward", "outcome", "step", *CREDITS.names]
    assert all(schema.field(name).type == SCHEMA.field(name).type for name in SCHEMA.names)
    assert all(schema.field(field.name).type == field.type for field in CREDITS)


async def test_a_lost_credit_table_loses_no_row_and_is_counted(tmp_path: Path):
    async def lost() -> pa.Table:
        raise ObjectLostError("1", b"", "")

    folder = Archive(tmp_path)
    folder.end_step([finished(1, outcomes=("trained",) * 2)], step=1, credits=lost())
    await folder.flush()
    rows = pq.read_table(tmp_path / "step-00001.parquet")
    assert (rows.num_rows, folder.num_failures) == (2, 1)
    assert rows["advantage"].to_pylist() == [None, None]
