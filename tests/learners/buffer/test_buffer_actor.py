"""The two work sources as real Ray actors."""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle

from actors.group_transport import FinishedGroup, GroupBatch
from actors.trajectory import GroupOrder, GroupSummary, StopReason
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from learners.buffer.fixed_work_source import TOKEN_COLUMNS, FixedWorkSource
from simulators.task import TaskKey, TaskSource

pytestmark = pytest.mark.slow
WAIT_S = 30.0
Actor = Any
"""An actor's handle; Ray's own type knows none of its methods."""

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20
    )
    yield
    ray.shutdown()


def start(actor_class: type, *args: Any, **kwargs: Any) -> Actor:
    """An actor of a plain class, as cluster/ makes them."""
    remote_class: Any = ray.remote(num_cpus=0)(actor_class)
    return remote_class.remote(*args, **kwargs)


def get(ref: Any) -> Any:
    """`ray.get`, which types what it gives as a list, with a time limit."""
    return ray.get(ref, timeout=WAIT_S)


def make_buffer(run_folder: Path, *, groups_per_step: int = 1, max_off_policy_steps: int = 0) -> Actor:
    sizes = BufferSizes(
        group_size=2, groups_per_step=groups_per_step, max_off_policy_steps=max_off_policy_steps, seed=7
    )
    source = TaskSource({"function": 1.0}, split="train", seed=7, difficulty=0)
    return start(BufferActor, sizes, source=source, run_folder=run_folder, group_timeout_s=WAIT_S)


def summary_of(order: GroupOrder, rewards: tuple[float, float]) -> GroupSummary:
    return GroupSummary(
        group_id=order.group_id,
        task_key=order.task_key,
        rewards=rewards,
        scores=rewards,
        num_turns=(1, 1),
        stop_reasons=(StopReason.TERMINATED,) * 2,
        drop_reasons=("", ""),
        group_drop_reason="flat" if rewards[0] == rewards[1] else "",
        num_policy_tokens=4,
        oldest_version=0,
        newest_version=0,
        version_spans=(0, 0),
        duration_s=1.0,
        policy_s=0.5,
        queue_s=0.0,
        user_s=0.5,
        tool_s=0.0,
        reward_s=0.0,
        user_retries=0,
        user_concurrency=0.0,
        simulator="rules",
        persona="plain",
    )


class Worker:
    """A rollout actor's calls to a work source, without the dialogues."""

    def __init__(self, name: str):
        self._name = name

    def work(self, work_source: Actor, rewards: list[tuple[float, float]]) -> list[GroupOrder]:
        """Takes one order for each of `rewards` and finishes it."""
        done: list[GroupOrder] = []
        for pair in rewards:
            (order,) = get(work_source.next_orders.remote(self._name, 1))
            # More than Ray passes inside a message: the table travels through the object store.
            table = pa.table(
                {
                    "group_id": [order.group_id] * 3,
                    "trajectory": [0, 0, 1],
                    "text": ["x" * 2**19] * 3,
                    **{name: [[1], [2], []] for name in TOKEN_COLUMNS},
                }
            )
            done_group = FinishedGroup(order=order, summary=summary_of(order, pair), payload=table)
            get(work_source.put.remote(GroupBatch.of([done_group])))
            done.append(order)
        return done

    def ask(self, work_source: Actor, num: int) -> list[GroupOrder]:
        """Takes orders and never finishes them."""
        return get(work_source.next_orders.remote(self._name, num))


@ray.remote(num_cpus=0)
def get_error() -> None:
    raise ValueError("the weights lack a parameter")


class LateEngine:
    """An engine whose weights arrive on the test's call."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()

    async def receive(self) -> dict[str, float]:
        await self._arrived.wait()
        return {}

    async def arrive(self) -> None:
        self._arrived.set()


def work(work_source: Actor, rewards: list[tuple[float, float]], *, name: str = "a") -> list[GroupOrder]:
    worker = start(Worker, name)
    done = get(worker.work.remote(work_source, rewards))
    ray.kill(worker)  # the table must outlive the actor that made it
    return done


def test_a_table_outlives_the_actor_that_made_it(tmp_path: Path):
    work_source = make_buffer(tmp_path)
    work(work_source, [(0.0, 1.0)])
    time.sleep(1.0)
    (group,) = get(work_source.take.remote(1, 0, WAIT_S))
    table = group.payload.of(get(group.payload.ref))
    assert table["trajectory"].to_pylist() == [0, 0, 1]
    ray.kill(work_source)


def test_trained_groups_are_archived_at_once_and_their_slots_are_freed_when_the_weights_are_live(
    tmp_path: Path,
):
    work_source = make_buffer(tmp_path)
    work(work_source, [(1.0, 1.0), (0.0, 1.0)])  # the flat group's slot is free at once
    (group,) = get(work_source.take.remote(1, 0, WAIT_S))
    asked = work_source.next_orders.remote("b", 4)
    summaries = get(work_source.mark_trained.remote([group.order.group_id], 3))
    assert [tuple(summary.rewards) for summary in summaries] == [(1.0, 1.0), (0.0, 1.0)]
    engine = start(LateEngine)
    live = [engine.receive.remote(), ray.put({})]
    released = work_source.release.remote([group.order.group_id], 1, live)
    assert ray.wait([asked, released], timeout=1.0)[0] == []  # a long poll: no slot before all are live
    get(engine.arrive.remote())
    assert [order.group_id for order in get(asked)] == [2]
    get(released)
    work_metrics = get(work_source.metrics.remote())
    assert work_metrics["ledger/trained"] == 2 and work_metrics["ledger/dropped/flat"] == 2
    get(work_source.close.remote())
    rows = pq.read_table(tmp_path / "trajectories" / "step-00003.parquet")
    assert rows["outcome"].to_pylist() == ["dropped:flat"] * 3 + ["trained"] * 3
    assert rows["step"].to_pylist() == [3] * 6
    assert [path.name for path in (tmp_path / "trajectories").iterdir()] == ["step-00003.parquet"]
    ray.kill(work_source)


def test_a_take_that_times_out_names_group_and_worker(tmp_path: Path):
    work_source = make_buffer(tmp_path)
    worker = start(Worker, "rollout-3")
    get(worker.ask.remote(work_source, 1))
    with pytest.raises(TimeoutError, match=r"0 of 1 groups are ready .*group 0 with rollout-3 for \d+ s"):
        get(work_source.take.remote(1, 0, 0.3))
    for actor in (worker, work_source):
        ray.kill(actor)


def test_orders_of_a_dead_worker_are_reassigned_and_a_restored_buffer_issues_them_again(tmp_path: Path):
    work_source = make_buffer(tmp_path, groups_per_step=2)
    dead = start(Worker, "dead")
    orders = get(dead.ask.remote(work_source, 5))
    dead.ask.remote(work_source, 5)  # it dies during a long poll, which must not get the orders again
    time.sleep(0.5)
    ray.kill(dead)
    assert get(work_source.reassign_groups_of.remote("dead")) == [0, 1]
    assert get(work_source.next_orders.remote("alive", 5)) == orders
    state = get(work_source.state.remote())
    restored = make_buffer(tmp_path, groups_per_step=2)
    get(restored.restore.remote(state, 0))
    assert get(restored.next_orders.remote("new", 5)) == orders
    assert get(restored.ledger.remote()).issued == 4
    for actor in (work_source, restored):
        ray.kill(actor)


def test_no_slot_is_freed_if_an_engine_could_not_load_the_weights(tmp_path: Path):
    work_source = make_buffer(tmp_path)
    work(work_source, [(0.0, 1.0)])
    (group,) = get(work_source.take.remote(1, 0, WAIT_S))
    get(work_source.mark_trained.remote([group.order.group_id], 1))
    broken = get_error.remote()
    with pytest.raises(ValueError, match="the weights lack a parameter"):
        get(work_source.release.remote([group.order.group_id], 1, [broken, ray.put({})]))
    metrics = get(work_source.metrics.remote())
    assert (metrics["buffer/slots_taken"], metrics["ledger/in_flight"]) == (1, 0)
    ray.kill(work_source)


def test_slots_are_freed_if_an_engine_died(tmp_path: Path):
    work_source = make_buffer(tmp_path)
    work(work_source, [(0.0, 1.0)])
    (group,) = get(work_source.take.remote(1, 0, WAIT_S))
    get(work_source.mark_trained.remote([group.order.group_id], 1))
    engine = start(LateEngine)
    live = engine.receive.remote()
    ray.kill(engine)
    get(work_source.release.remote([group.order.group_id], 1, [live, ray.put({})]))
    assert get(work_source.metrics.remote())["buffer/slots_taken"] == 0
    ray.kill(work_source)


def test_close_ends_a_long_poll_with_none(tmp_path: Path):
    work_source = make_buffer(tmp_path)
    get(work_source.next_orders.remote("a", 1))
    asked = work_source.next_orders.remote("b", 1)
    get(work_source.close.remote())
    assert get(asked) is None
    ray.kill(work_source)


def test_a_failing_disk_is_counted_and_stops_nothing(tmp_path: Path):
    (tmp_path / "trajectories").write_text("a file where the folder should be")
    work_source = make_buffer(tmp_path)
    for step in range(2):
        work(work_source, [(0.0, 1.0)])
        (group,) = get(work_source.take.remote(1, 0, WAIT_S))
        get(work_source.mark_trained.remote([group.order.group_id], step))
        get(work_source.release.remote([group.order.group_id], 0))
    get(work_source.close.remote())
    metrics = get(work_source.metrics.remote())
    assert metrics["buffer/archive_failures"] == 2 and metrics["ledger/trained"] == 4
    ray.kill(work_source)


async def test_a_fixed_work_source_ends_when_every_group_has_arrived(tmp_path: Path):
    keys = [TaskKey(gym="function", split="test", index=i, seed=7, difficulty=0) for i in range(3)]
    orders = [GroupOrder(group_id=i, task_key=key, group_size=2, seed=7) for i, key in enumerate(keys)]
    work_source = start(FixedWorkSource, orders, group_timeout_s=WAIT_S)
    lost = await work_source.next_orders.remote("dead", 2)
    await asyncio.to_thread(work, work_source, [(0.0, 1.0)])
    (table,) = await work_source.finished_since.remote(0)
    assert table.column_names == ["group_id", "trajectory", "text", "is_turn"]
    assert table["is_turn"].to_pylist() == [True, True, False]
    assert await work_source.finished_since.remote(1) == []
    with pytest.raises(TimeoutError, match="group 0 with dead; group 1 with dead"):
        await work_source.results.remote(0.2)
    assert await work_source.reassign_groups_of.remote("dead") == [order.group_id for order in lost]
    await asyncio.to_thread(work, work_source, [(1.0, 1.0), (0.0, 0.0)])
    groups = await work_source.results.remote(WAIT_S)
    assert [tuple(group.summary.rewards) for group in groups] == [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0)]
    assert await work_source.next_orders.remote("a", 1) is None
    await work_source.write.remote(tmp_path / "evaluation.parquet")
    assert pq.read_table(tmp_path / "evaluation.parquet").num_rows == 9
    ray.kill(work_source)
