"""The archive as others read it: whole files of one schema, at any moment of a run."""

import asyncio
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ObjectLostError

from actors.trajectory import StopReason
from actors.trajectory_table import SCHEMA
from learners.buffer import archive
from learners.buffer.archive import Archive, ArchiveEntry, rewind, with_outcomes, write_settled, write_tables
from learners.buffer.credit_columns import CREDITS
from tests.learners.tiny_parts import make_table, make_turn

LIMIT_S = 30.0


def group(group_id: int) -> pa.Table:
    turns = [[make_turn([1, 2], [3, 4], reward=float(i), forked=True)] for i in range(2)]
    return make_table([(one, StopReason.TERMINATED) for one in turns], group_id=group_id)


async def fetched(table: pa.Table) -> pa.Table:
    return table


async def write_step(folder: Archive, step: int) -> None:
    entry = ArchiveEntry(ref=fetched(group(step)), outcomes=("trained", "flat"))
    folder.submit(f"step-{step:05d}", [entry], step=step)
    await folder.flush(timeout_s=LIMIT_S)


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
async def test_the_folder_can_be_read_after_every_step_of_a_run_that_goes_on(tmp_path: Path, read: Any):
    folder = Archive(tmp_path)
    for step in range(1, 4):
        await write_step(folder, step)
        assert await asyncio.to_thread(read, tmp_path) == (2 * step, 1.0 * step)


@pytest.mark.parametrize("read", [with_pandas, with_dataset, with_polars, with_duckdb])
def test_a_file_that_is_being_written_is_nobodys_yet(
    tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
):
    write_tables(tmp_path / "step-00001.parquet", [group(1)])
    seen: list[tuple[int, float]] = []
    write = pq.write_table

    def write_and_look(table: pa.Table, where: Path, **options: Any) -> None:
        write(table, where, **options)
        where.write_bytes(where.read_bytes()[:100])  # as half of it lies there
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


async def test_credit_that_is_lost_costs_no_row_and_is_counted(tmp_path: Path):
    async def lost() -> pa.Table:
        raise ObjectLostError("1", b"", "")

    folder = Archive(tmp_path)
    entry = ArchiveEntry(ref=fetched(group(1)), outcomes=("trained", "trained"))
    folder.submit("step-00001", [entry], step=1, credits=lost())
    await folder.flush(timeout_s=LIMIT_S)
    rows = pq.read_table(tmp_path / "step-00001.parquet")
    assert (rows.num_rows, folder.num_failures) == (2, 1)
    assert rows["advantage"].to_pylist() == [None, None]


def test_a_run_that_an_older_version_began_goes_back_across_both_kinds_of_files(tmp_path: Path):
    """Files of before have no credit; what is kept of both becomes one file."""
    old = with_outcomes(group(1), outcomes=("flat", "flat"), step=2)
    write_tables(tmp_path / "step-00002.parquet", [old])
    outcomes = [("flat", "flat")]
    write_settled(tmp_path / "step-00003.parquet", [group(2)], outcomes=outcomes, step=3, credits=None)
    rewind(tmp_path, step=1, to_come=lambda ids: set())
    (path,) = tmp_path.iterdir()
    rows = pq.read_table(path)
    assert path.name == "step-00001-rest.parquet"
    assert rows["group_id"].to_pylist() == [1, 1, 2, 2] and set(rows["step"].to_pylist()) == {1}
    assert rows["advantage"].to_pylist() == [None] * 4
