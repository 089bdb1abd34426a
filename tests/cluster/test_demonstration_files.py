"""What experts have played is kept: a run that goes on plays the rest, and imitates all in the same order."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from actors.renderer import Renderer
from actors.trajectory import GroupOrder
from cluster import demonstration_files
from cluster.config import RunConfig
from cluster.demonstrations import ORDERS_PER_TABLE, gather_demonstrations
from cluster.run_folder import RunFolder
from learners.config import TinyPolicyConfig
from learners.tiny_policy import make_tokenizer
from tests.learners.dialogues import play
from tests.learners.test_sharegpt import own_table

NUM_CHUNKS = 4
LAST = 10
"""Orders of the last chunk, which is smaller."""


class Killed(Exception):
    """Of the driver."""


class Experts:
    """Rollout actors that play chunks in turn, backwards, until their driver is killed. All tables are of the
    same dialogues, which the test has played."""

    def __init__(self, table: pa.Table, *, until: int = NUM_CHUNKS) -> None:
        self._table, self._until = table, until
        self.asked: list[int] = []

    def sample(
        self, chunks: Mapping[int, Sequence[GroupOrder]], *, policy: str
    ) -> Iterator[tuple[int, pa.Table]]:
        assert policy == "expert"
        for num_done, (key, orders) in enumerate(reversed(list(chunks.items()))):
            if num_done == self._until:
                raise Killed
            self.asked.append(len(orders))
            yield key, marked(self._table, orders[0].group_id)


def marked(table: pa.Table, group_id: int) -> pa.Table:
    column = table.schema.get_field_index("group_id")
    return table.set_column(column, "group_id", pa.array([group_id] * table.num_rows, pa.int64()))


@pytest.fixture(autouse=True)
def references_are_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda table, timeout: table)
    monkeypatch.setattr(ray, "put", lambda table: table)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    renderer = Renderer(make_tokenizer(vocab_size=TinyPolicyConfig().vocab_size))
    gyms = ("travel", "function", "telepathy")
    return pa.concat_tables(own_table(play("expert", gym=gym, index=0, renderer=renderer)) for gym in gyms)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    count = (NUM_CHUNKS - 1) * ORDERS_PER_TABLE + LAST
    return RunConfig.model_validate({"run": {"folder": str(tmp_path)}, "sft": {"num_demonstrations": count}})


def gather(config: RunConfig, experts: Experts) -> list[pa.Table]:
    rollouts: Any = experts
    tables: Any = gather_demonstrations(config, rollouts=rollouts, policy_folder="").tables
    return list(tables)


def all_of(table: pa.Table) -> list[pa.Table]:
    return [marked(table, number * ORDERS_PER_TABLE) for number in range(NUM_CHUNKS)]


def test_a_run_that_goes_on_plays_what_is_missing_and_imitates_the_same(
    config: RunConfig, table: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Experts(table, until=2)
    with pytest.raises(Killed):
        gather(config, first)
    assert first.asked == [LAST, ORDERS_PER_TABLE]
    second = Experts(table)
    tables = gather(config, second)
    assert second.asked == [ORDERS_PER_TABLE] * 2, "only the two that are missing"
    assert f"{LAST + ORDERS_PER_TABLE} demonstrations are there from before" in capsys.readouterr().err
    third = Experts(table)
    assert tables == all_of(table)
    assert [one.schema for one in tables] == [table.schema] * NUM_CHUNKS, "they are packed together"
    assert gather(config, third) == tables
    assert third.asked == []


def test_the_files_are_rows_as_any_other(config: RunConfig, table: pa.Table) -> None:
    gather(config, Experts(table))
    files = sorted(RunFolder.of(config).demonstrations.iterdir())
    assert [file.name for file in files][::3] == ["000000-000255.parquet", "000768-000777.parquet"]
    assert pq.read_table(files[0])["text"].to_pylist() == table["text"].to_pylist()


def test_a_file_that_cannot_be_read_is_played_again(
    config: RunConfig, table: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    gather(config, Experts(table))
    broken = RunFolder.of(config).demonstrations / "000256-000511.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    again = Experts(table)
    assert gather(config, again) == all_of(table)
    assert again.asked == [ORDERS_PER_TABLE]
    assert f"{broken} cannot be read" in capsys.readouterr().err
    assert pq.read_table(broken).num_rows == table.num_rows


def test_a_full_disk_is_said_once_and_stops_nothing(
    config: RunConfig, table: pa.Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, tables: Sequence[pa.Table]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demonstration_files, "write_tables", refuse)
    assert gather(config, Experts(table)) == all_of(table)
    assert capsys.readouterr().err.count("No space left on device") == 1
