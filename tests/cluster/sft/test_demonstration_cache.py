"""What experts have played is kept: a run that goes on plays the rest, and imitates all in the same order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.renderer import Renderer
from actors.trajectory import GroupOrder
from actors.trajectory_table import REWARD, SCORED
from cluster.config.run_config import RunConfig
from cluster.run_folder.paths import RunFolder
from cluster.sft import demonstration_cache
from cluster.sft.demonstration_cache import ORDERS_PER_FILE, DemonstrationCacheActor
from cluster.sft.demonstrations import gather_demonstrations
from learners.config import TinyPolicyConfig
from learners.model.tiny_policy import make_tokenizer
from tests.learners.demonstration_dialogues import play
from tests.learners.sft.test_sharegpt import own_table

pytestmark = pytest.mark.medium

NUM_FILES = 4
LAST = 10
"""Orders of the last file, which is smaller."""
FIRSTS = [number * ORDERS_PER_FILE for number in range(NUM_FILES)]


class Killed(Exception):
    """Of the driver."""


class Experts:
    """Rollout actors that play chunks in turn, backwards, until their driver is killed. Every order gets the
    same dialogue; those of `failing` failed."""

    def __init__(self, table: pa.Table, *, until: int = NUM_FILES, failing: Sequence[int] = ()) -> None:
        self._table, self._until, self._failing = table, until, failing
        self.asked: list[int] = []

    def sample(
        self, chunks: Mapping[str, Sequence[GroupOrder]], *, policy: str
    ) -> Iterator[tuple[str, pa.Table]]:
        assert policy == "expert"
        for num_done, (name, orders) in enumerate(reversed(list(chunks.items()))):
            if num_done == self._until:
                raise Killed
            self.asked.append(len(orders))
            ids = [order.group_id for order in orders]
            yield name, pa.concat_tables(one_of(self._table, i, failed=i in self._failing) for i in ids)


def one_of(table: pa.Table, group_id: int, *, failed: bool = False) -> pa.Table:
    for name, value in (("group_id", group_id), ("failed", failed)):
        index = SCORED.get_field_index(name)
        values = pa.array([value] * table.num_rows, SCORED.field(name).type)
        table = table.set_column(index, SCORED.field(name), values)
    return table


class Fault:
    """In the place of an answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Call:
    """A method of the actor, called at once; its answers are in the place of references to them."""

    def __init__(self, work: Callable[..., object]) -> None:
        self.remote = work

    def options(self, *, num_returns: str) -> "Call":
        assert num_returns == "streaming"
        return self


@pytest.fixture(autouse=True)
def actor(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    files = DemonstrationCacheActor()
    actor = SimpleNamespace(read=Call(files.read), write=Call(files.write))

    def get(answer: Any, timeout: float | None = None) -> Any:
        if isinstance(answer, Fault):
            raise answer.error
        return answer

    def start(actor_class: type, *, max_concurrency: int) -> SimpleNamespace:
        assert (actor_class, max_concurrency) == (DemonstrationCacheActor, 1)
        return SimpleNamespace(remote=lambda: actor)

    monkeypatch.setattr(demonstration_cache, "actor_on_driver_node", start)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda answers, num_returns, timeout: (answers, []))
    return actor


@pytest.fixture(scope="module")
def table() -> pa.Table:
    renderer = Renderer(make_tokenizer(vocab_size=TinyPolicyConfig().vocab_size))
    table = own_table(play("expert", gym="travel", index=0, renderer=renderer))
    return table.append_column(REWARD, pa.array([0.5] * table.num_rows))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    count = FIRSTS[-1] + LAST
    return RunConfig.model_validate({"run": {"folder": str(tmp_path)}, "sft": {"num_demonstrations": count}})


def gather(config: RunConfig, experts: Experts, *, has_begun: bool = False) -> list[pa.Table]:
    player: Any = experts
    tables: Any = gather_demonstrations(config, player=player, policy_folder="", has_begun=has_begun).tables
    return list(tables)


def ids(tables: Sequence[pa.Table], *, failed: bool = False) -> list[int]:
    """Groups, in the tables' order."""
    rows = pa.concat_tables(tables).select(["group_id", "failed"]).to_pylist()
    return list(dict.fromkeys(row["group_id"] for row in rows if row["failed"] == failed))


def test_a_run_that_goes_on_plays_what_is_missing_and_imitates_the_same(
    config: RunConfig, table: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Experts(table, until=2)
    with pytest.raises(Killed):
        gather(config, first)
    assert first.asked == [LAST, ORDERS_PER_FILE]
    second = Experts(table)
    tables = gather(config, second)
    assert second.asked == [ORDERS_PER_FILE] * 2, "only the two that are missing"
    folder = RunFolder.of(config).demonstrations
    assert f"{LAST + ORDERS_PER_FILE} demonstrations are in {folder} from before" in capsys.readouterr().err
    assert ids(tables) == list(range(FIRSTS[-1] + LAST))
    assert [one.schema for one in tables] == [SCORED] * NUM_FILES, "they are packed together"
    third = Experts(table)
    assert gather(config, third) == tables
    assert third.asked == []


def test_the_files_hold_the_rows_as_they_came(config: RunConfig, table: pa.Table) -> None:
    tables = gather(config, Experts(table))
    files = sorted(RunFolder.of(config).demonstrations.iterdir())
    assert [file.name for file in files] == [f"{first:06d}-01.parquet" for first in FIRSTS]
    assert [pq.read_table(file) for file in files] == tables


def test_what_failed_is_played_again_until_the_policy_has_imitated_the_others(
    config: RunConfig, table: pa.Table
) -> None:
    """Whoever was asked in vain, for all or for some, may have been mended meanwhile."""
    gather(config, Experts(table, failing=[3, 300, *range(FIRSTS[2], FIRSTS[3])]))
    begun = Experts(table)
    assert ids(gather(config, begun, has_begun=True), failed=True) == [3, 300, *range(FIRSTS[2], FIRSTS[3])]
    assert begun.asked == []
    second = Experts(table, failing=[300])
    gather(config, second)
    assert second.asked == [2, ORDERS_PER_FILE], "the two single ones and a whole file's"
    third = Experts(table)
    tables = gather(config, third)
    assert third.asked == [1]
    assert sorted(ids(tables)) == list(range(FIRSTS[-1] + LAST))
    assert gather(config, Experts(table, until=0)) == tables


def test_a_file_that_cannot_be_used_is_named_and_played_again(
    config: RunConfig, table: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gather(config, Experts(table))
    folder = RunFolder.of(config).demonstrations
    broken, older = folder / "000256-01.parquet", folder / "000512-01.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    pq.write_table(pq.read_table(older).drop_columns(["text"]), older)
    again = Experts(table)
    assert gather(config, again) == whole
    assert again.asked == [ORDERS_PER_FILE] * 2
    told = capsys.readouterr().err
    assert f"{broken} cannot be read" in told and f"{older} is of another version" in told
    assert gather(config, Experts(table, until=0)) == whole, "they are there again"
    assert "again" not in capsys.readouterr().err
    assert {path.name for path in folder.glob("*.unusable")} == {"000256-01.unusable", "000512-01.unusable"}


def test_what_is_not_the_runs_own_is_left_alone(config: RunConfig, table: pa.Table) -> None:
    whole = gather(config, Experts(table))
    folder = RunFolder.of(config).demonstrations
    (folder / "000000-01 copy.parquet").write_bytes((folder / "000000-01.parquet").read_bytes())
    assert gather(config, Experts(table, until=0)) == whole


@pytest.mark.parametrize("num_answers", [2, 3], ids=["over a table", "over what it holds"])
def test_an_actor_that_dies_while_it_reads_leaves_what_it_has_read(
    config: RunConfig,
    table: pa.Table,
    actor: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    num_answers: int,
) -> None:
    whole = gather(config, Experts(table))
    read = actor.read.remote

    def die(folder: Path) -> Iterator[Any]:
        """The second file is not read to its end."""
        yield from islice(read(folder), num_answers)
        yield Fault(RayActorError())

    actor.read = Call(die)
    again = Experts(table)
    assert gather(config, again) == whole
    assert sum(again.asked) == FIRSTS[-1] + LAST - ORDERS_PER_FILE
    assert "was not read to its end" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("[Errno 28] No space left on device", "No space left on device"),
        (Fault(GetTimeoutError()), "the disk has not taken it within 60 s"),
        (Fault(RayActorError()), "actor"),
    ],
)
def test_a_disk_that_takes_nothing_is_said_once_and_stops_nothing(
    config: RunConfig,
    table: pa.Table,
    actor: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    answer: object,
    why: str,
) -> None:
    actor.write = Call(lambda path, table: answer)
    assert ids(gather(config, Experts(table))) == list(range(FIRSTS[-1] + LAST))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not written" in line]
    assert why in line and "4 of 4 files" in line


def test_what_the_disk_refuses_is_an_answer(tmp_path: Path, table: pa.Table) -> None:
    (tmp_path / "file").touch()
    assert "File exists" in DemonstrationCacheActor().write(tmp_path / "file" / "000000-01.parquet", table)
