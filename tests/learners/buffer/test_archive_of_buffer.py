"""The archive of a buffer that drops many groups, and of a run that resumes from its checkpoints: every
resolved group is on disk once. The buffer is the real one, without Ray."""

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learners.buffer import buffer_actor
from learners.buffer.buffer import BufferSizes
from tests.learners.local_buffer import LocalBuffer, batch_of, make_local_buffer

pytestmark = pytest.mark.medium

LIMIT_S = 30.0
SIZES = BufferSizes(group_size=2, groups_per_step=2, max_off_policy_steps=1, seed=0)
GOOD, FLAT = [0.0, 1.0], [0.5, 0.5]


def make_buffer(folder: Path) -> LocalBuffer:
    return make_local_buffer(folder, SIZES, group_timeout_s=LIMIT_S)


async def play(buffer: LocalBuffer, *groups: list[float]) -> None:
    """Plays one group for each of these rewards."""
    for rewards in groups:
        (order,) = await buffer.next_orders("a", 1) or []
        assert await buffer.put(batch_of(order, rewards)) == [True]


async def train(buffer: LocalBuffer, step: int) -> list[int]:
    """The ids of the groups that the step reports."""
    groups = [group.order.group_id for group in await buffer.take(2, 0, LIMIT_S)]
    summaries = await buffer.mark_trained(groups, step)
    await buffer.release(groups, 0)
    return [summary.group_id for summary in summaries]


def files(folder: Path) -> dict[str, list[int]]:
    """Group ids by file, each once."""
    paths = sorted((folder / "trajectories").glob("*.parquet"))
    return {path.stem: sorted(pq.read_table(path)["group_id"].to_pylist()[::2]) for path in paths}


def rows(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in (folder / "trajectories").glob("*.parquet"))


def assert_each_once(folder: Path) -> Counter[str]:
    """Outcomes on disk, by trajectory."""
    table = rows(folder)
    keys = list(zip(table["group_id"].to_pylist(), table["trajectory"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys))
    return Counter(table["outcome"].to_pylist())


async def test_dropped_groups_do_not_wait_for_a_step_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(buffer_actor, "MAX_RESOLVED", 4)
    buffer = make_buffer(tmp_path)
    await play(buffer, *[FLAT] * 10)
    await buffer._archive.flush()
    assert files(tmp_path) == {"step-00001-part-000": [0, 1, 2, 3], "step-00001-part-001": [4, 5, 6, 7]}
    assert len(buffer._buffer.resolved) == 2, "no other table is kept in memory"
    await play(buffer, GOOD, GOOD)
    assert await train(buffer, 1) == list(range(12)), "the step reports the archived ones, too"
    await play(buffer, *[FLAT] * 4, GOOD, GOOD)
    assert await train(buffer, 2) == [12, 13, 14, 15, 16, 17]
    await buffer.close()
    assert files(tmp_path) == {
        "step-00001-part-000": [0, 1, 2, 3],
        "step-00001-part-001": [4, 5, 6, 7],
        "step-00001": [8, 9, 10, 11],
        "step-00002-part-000": [12, 13, 14, 15],
        "step-00002": [16, 17],
    }
    table = rows(tmp_path)
    steps = dict(zip(table["group_id"].to_pylist(), table["step"].to_pylist(), strict=True))
    assert steps == dict.fromkeys(range(12), 1) | dict.fromkeys(range(12, 18), 2)
    ledger = await buffer.ledger()
    assert assert_each_once(tmp_path) == {"trained": 8, "dropped:flat": 28}
    assert (ledger.trained, ledger.dropped["flat"], ledger.in_flight) == (8, 28, 0)


async def test_a_resumed_run_deletes_the_rows_of_groups_that_it_plays_again_and_no_others(tmp_path: Path):
    first = make_buffer(tmp_path)
    await play(first, FLAT, GOOD, GOOD)
    await train(first, 1)
    await play(first, FLAT)  # 3: dropped before the checkpoint, and written after it
    held = await first.next_orders("b", 1) or []
    state = json.loads(json.dumps(await first.state()))
    await first.put(batch_of(held[0], FLAT))  # 4: unresolved at the checkpoint
    await play(first, GOOD, GOOD)
    await train(first, 2)
    await play(first, FLAT)
    await first.close()
    assert files(tmp_path) == {
        "step-00001": [0, 1, 2],
        "step-00002": [3, 4, 5, 6],
        "step-00003-part-000": [7],
    }

    second = make_buffer(tmp_path)
    await second.restore(state, 1)
    assert files(tmp_path) == {"step-00001": [0, 1, 2], "step-00001-rest": [3]}
    kept = pq.read_table(tmp_path / "trajectories" / "step-00001-rest.parquet")
    assert kept["step"].to_pylist() == [1, 1] and kept["outcome"].to_pylist() == ["dropped:flat"] * 2
    await second.close()  # before any step: the rest file stays

    third = make_buffer(tmp_path)
    await third.restore(state, 1)
    await play(third, GOOD, FLAT, GOOD)
    await train(third, 2)
    await third.close()
    assert files(tmp_path) == {"step-00001": [0, 1, 2], "step-00001-rest": [3], "step-00002": [4, 5, 6]}
    ledger = await third.ledger()
    assert assert_each_once(tmp_path) == {"trained": 8, "dropped:flat": 6}
    assert (ledger.trained, ledger.dropped["flat"]) == (8, 6)


@pytest.mark.parametrize("seed", range(8))
async def test_after_any_number_of_resumes_every_resolved_group_is_on_disk_once(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(buffer_actor, "MAX_RESOLVED", 3)
    rng = random.Random(seed)
    checkpoint, buffer = (await make_buffer(tmp_path).state(), 0), make_buffer(tmp_path)
    for _ in range(4):
        buffer = make_buffer(tmp_path)
        state, step = checkpoint
        await buffer.restore(json.loads(json.dumps(state)), step)
        for new in range(step + 1, step + rng.randint(2, 5)):
            await play(buffer, *[FLAT] * rng.randint(0, 8), GOOD, *[FLAT] * rng.randint(0, 3), GOOD)
            await train(buffer, new)
            await play(buffer, *[FLAT] * rng.randint(0, 4))
            if rng.random() < 0.4:
                checkpoint = await buffer.state(), new
            await play(buffer, *[FLAT] * rng.randint(0, 4))
            await buffer._archive.flush()
        await buffer.close()
        ledger, outcomes = await buffer.ledger(), assert_each_once(tmp_path)
        assert outcomes == Counter({"trained": ledger.trained, "dropped:flat": ledger.dropped["flat"]})


async def test_an_interrupted_rewind_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = make_buffer(tmp_path)
    await play(first, GOOD, GOOD)
    await train(first, 1)
    await play(first, FLAT)
    state = await first.state()
    await play(first, GOOD, GOOD)
    await train(first, 2)
    await first.close()

    def refuse(path: Path) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, missing_ok=False: None if missing_ok else refuse(path))
        second = make_buffer(tmp_path)
        await second.restore(state, 1)
        assert (await second.metrics())["buffer/archive_failures"] == 1
    await make_buffer(tmp_path).restore(state, 1)
    assert files(tmp_path) == {"step-00001": [0, 1], "step-00001-rest": [2]}


async def test_a_run_that_starts_from_the_beginning_keeps_no_row_of_the_earlier_process(tmp_path: Path):
    first = make_buffer(tmp_path)
    await play(first, GOOD, FLAT, GOOD)
    await train(first, 1)
    await play(first, FLAT)
    await first.close()
    assert len(files(tmp_path)) == 2  # killed before its first checkpoint
    second = make_buffer(tmp_path)
    await second.restore(await second.state(), 0)
    assert files(tmp_path) == {}


async def test_a_buffer_that_has_issued_an_order_cannot_be_restored(tmp_path: Path):
    buffer = make_buffer(tmp_path)
    state = await buffer.state()
    await buffer.restore(state, 0)
    await buffer.restore(state, 0)  # any number of times before it
    (order,) = await buffer.next_orders("a", 1) or []
    with pytest.raises(AssertionError, match="groups were ordered already"):
        await buffer.restore(state, 0)
    assert await buffer.put(batch_of(order, GOOD)) == [True]
    assert (await buffer.ledger()).issued == 2
