"""A run with all faults at once: workers that hang, die, are late or send twice, groups that fail, stay
unscored, flat or empty, weights that arrive late. The buffer is the real one, without Ray."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.group_transport import FinishedGroup, GroupBatch
from actors.trajectory import GroupOrder, GroupSummary, StopReason
from learners.buffer.buffer import BufferSizes
from learners.buffer.work_source import ReassignedGroup
from tests.effort import IS_SOAK
from tests.fakes import make_summary
from tests.learners.local_buffer import LocalBuffer, batch_of, make_local_buffer

pytestmark = pytest.mark.medium

NUM_STEPS = 80 if IS_SOAK else 40
NUM_WORKERS = 6
GROUPS_PER_STEP = 3
GROUP_SIZE, NUM_EXTRA = 3, 1
GROUP_TIMEOUT_S = 0.1
WAIT_S = 60.0
"""Far longer than the whole run takes."""

OK, FAILED = StopReason.TERMINATED, StopReason.SIMULATOR_ERROR
CUT, SURPLUS = StopReason.TIME_LIMIT, StopReason.SURPLUS
NAN = math.nan
RESULTS: list[tuple[list[float], list[StopReason]]] = [
    ([0.0, 0.5, 1.0, NAN], [OK, OK, OK, SURPLUS]),
    ([0.0, NAN, 1.0, 0.5], [OK, SURPLUS, OK, OK]),
    ([0.0, 1.0, NAN, NAN], [OK, OK, CUT, FAILED]),
    ([1.0, 0.5, NAN, NAN], [OK, OK, OK, CUT]),  # and one unscored
    ([0.5, 0.5, 0.5, NAN], [OK, OK, OK, SURPLUS]),  # flat
    ([1.0, NAN, NAN, NAN], [OK, CUT, FAILED, CUT]),  # too few
    ([NAN] * 4, [FAILED] * 4),
    ([NAN] * 4, [CUT] * 4),
]
RESULT_WEIGHTS = [6, 6, 4, 3, 3, 2, 1, 1]
FATES = ("quick", "slow", "late", "twice", "empty", "hangs")
FATE_WEIGHTS = (16, 4, 1, 2, 1, 1)


@dataclass
class World:
    """The workers around a buffer, and the weights in their engines."""

    buffer: LocalBuffer
    rng: random.Random
    live: int = 0
    """The version in the engines."""
    tasks: dict[str, set[asyncio.Task[None]]] = field(default_factory=dict)
    """By worker: its running calls."""
    hung: set[str] = field(default_factory=set)
    names: Iterator[int] = field(default_factory=count)
    fates: Counter[str] = field(default_factory=Counter)

    def start_worker(self) -> None:
        name = f"worker-{next(self.names)}"
        self.tasks[name] = set()
        self._spawn(name, self._work(name))

    async def disturb(self, step: int) -> None:
        """Sometimes a worker dies, and the driver notices it; or one hangs unnoticed. Its last poll may still
        get orders."""
        if step % 5:
            return
        worker = self.rng.choice([name for name in self.tasks if name not in self.hung])
        self.start_worker()
        if step % 2:
            for task in self.tasks.pop(worker):
                task.cancel()
            await self.buffer.reassign_groups_of(worker)
        else:
            self.hung.add(worker)

    async def stop(self) -> None:
        running = [task for tasks in self.tasks.values() for task in tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _spawn(self, name: str, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks[name].add(task)
        task.add_done_callback(lambda done: self.tasks.get(name, set()).discard(done))

    async def _work(self, name: str) -> None:
        """Asks without a limit on its dialogues."""
        while (orders := await self.buffer.next_orders(name, self.rng.randint(1, 3))) is not None:
            if name in self.hung:
                return
            for order in orders:
                self._spawn(name, self._play(order, name))
            await asyncio.sleep(self.rng.uniform(0, 0.004))  # meanwhile the others get orders

    async def _play(self, order: GroupOrder, name: str) -> None:
        fate = self.rng.choices(FATES, FATE_WEIGHTS)[0]
        self.fates[fate] += 1
        began = self.live
        if fate == "hangs":
            await asyncio.Event().wait()
        most_s = {"slow": 0.06, "late": 3 * GROUP_TIMEOUT_S}.get(fate, 0.004)
        await asyncio.sleep(self.rng.uniform(GROUP_TIMEOUT_S if fate == "late" else 0, most_s))
        if name in self.hung:
            return
        for _ in range(2 if fate == "twice" else 1):
            await self.buffer.put(
                self._finished(order, versions=(began, self.live), is_empty=fate == "empty")
            )

    def _finished(self, order: GroupOrder, *, versions: tuple[int, int], is_empty: bool) -> GroupBatch:
        rewards, reasons = self.rng.choices(RESULTS, RESULT_WEIGHTS)[0]
        return batch_of(order, rewards, stop_reasons=reasons, versions=versions, is_empty=is_empty)


def make_buffer(
    folder: Path, *, max_off_policy_steps: int, group_timeout_s: float = GROUP_TIMEOUT_S
) -> LocalBuffer:
    sizes = BufferSizes(
        group_size=GROUP_SIZE,
        groups_per_step=GROUPS_PER_STEP,
        max_off_policy_steps=max_off_policy_steps,
        seed=0,
        extra_dialogues=NUM_EXTRA,
    )
    return make_local_buffer(folder, sizes, group_timeout_s=group_timeout_s)


@dataclass
class Driver:
    """The driver's calls, and the checks after each step."""

    world: World
    bound: int
    version: int = 0
    released: asyncio.Task[None] | None = None
    lost: list[ReassignedGroup] = field(default_factory=list)
    settled: Counter[int] = field(default_factory=Counter)
    """By group."""

    async def step(self) -> None:
        buffer = self.world.buffer
        groups = await buffer.take(GROUPS_PER_STEP, self.version, timeout_s=WAIT_S)
        self._check_use(groups)
        await asyncio.sleep(self.world.rng.uniform(0, 0.01))  # the update
        self.version += 1
        await self._finish_release()
        live = asyncio.ensure_future(self._arrive(self.version))
        ids = [group.order.group_id for group in groups]
        self._note(await buffer.mark_trained(ids, self.version))
        release = buffer.release(ids, self.version, live=cast(Any, [live]))
        self.released = asyncio.ensure_future(release)
        if self.bound == 0:
            await self._finish_release()
        await self._check_laws()

    async def _arrive(self, version: int) -> None:
        await asyncio.sleep(self.world.rng.uniform(0, 0.01))
        self.world.live = version

    async def _finish_release(self) -> None:
        if self.released is not None:
            await self.released

    def _check_use(self, groups: list[FinishedGroup]) -> None:
        assert len(groups) == GROUPS_PER_STEP
        for group in groups:
            assert self.version - group.summary.oldest_version <= self.bound
            assert 2 <= len(group.summary.usable) <= GROUP_SIZE

    def _note(self, summaries: list[GroupSummary]) -> None:
        self.settled.update(summary.group_id for summary in summaries)
        assert max(self.settled.values()) == 1

    async def _check_laws(self) -> None:
        buffer = self.world.buffer
        ledger, metrics = await buffer.ledger(), await buffer.metrics()
        assert ledger.closes() and ledger.in_flight >= 0
        assert metrics["buffer/slots_taken"] <= GROUPS_PER_STEP * (self.bound + 1)
        lost = await buffer.pop_reassigned()
        self.lost += lost
        assert metrics["buffer/reissued"] == len(self.lost)
        await buffer._archive.flush()


@pytest.mark.parametrize("bound", [0, 1, 3])
async def test_with_all_faults_no_token_is_too_old_no_group_is_lost_and_nothing_hangs(
    bound: int, tmp_path: Path
):
    buffer = make_buffer(tmp_path, max_off_policy_steps=bound)
    world = World(buffer=buffer, rng=random.Random(bound))
    driver = Driver(world=world, bound=bound)
    for _ in range(NUM_WORKERS):
        world.start_worker()
    async with asyncio.timeout(WAIT_S):
        for step in range(NUM_STEPS):
            await world.disturb(step)
            await driver.step()
    await driver._finish_release()
    await world.stop()
    await buffer.close()
    ledger, metrics = await buffer.ledger(), await buffer.metrics()
    assert metrics["buffer/archive_failures"] == 0

    # All faults occurred.
    assert set(world.fates) == set(FATES)
    assert min(ledger.dropped[reason] for reason in ("flat", "failed", "cut", "surplus", "unscored")) > 0
    assert ledger.dropped["too_few"] > 0 and ledger.dropped["no_tokens"] > 0
    assert bound or not ledger.dropped["stale"]  # a synchronous step's groups cannot age
    assert metrics["buffer/puts_ignored"] > 0 and driver.lost
    assert all(group.worker.startswith("worker-") for group in driver.lost)

    # The rows on disk agree: every trajectory once, and no trained token beyond the bound.
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "trajectories").iterdir()))
    keys = list(zip(rows["group_id"].to_pylist(), rows["trajectory"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys)) == ledger.trained + sum(ledger.dropped.values())
    outcomes = Counter(rows["outcome"].to_pylist())
    assert outcomes.pop("trained") == ledger.trained > 0
    assert outcomes == {f"dropped:{reason}": n for reason, n in ledger.dropped.items() if n}
    assert ledger.issued == len(keys) + ledger.in_flight
    trained = rows.filter(pa.array([outcome == "trained" for outcome in rows["outcome"].to_pylist()]))
    pairs = zip(trained["step"].to_pylist(), trained["policy_versions"].to_pylist(), strict=True)
    assert max(step - 1 - min(versions) for step, versions in pairs) <= bound


async def test_an_overdue_group_is_reported_and_reassigned_within_its_timeout(tmp_path: Path):
    buffer = make_buffer(tmp_path, max_off_policy_steps=0, group_timeout_s=0.3)
    loop = asyncio.get_running_loop()
    held = await buffer.next_orders("hung", 2)
    began = loop.time()
    assert held is not None and len(held) == 2
    assert await buffer.next_orders("other", 1) is not None  # the last slot
    given = await asyncio.wait_for(buffer.next_orders("other", 2), timeout=20)
    took = loop.time() - began
    assert given == held and 0.25 <= took < 4  # a poll lasts 5 s: it was woken
    lost = await buffer.pop_reassigned()
    assert [(group.group_id, group.worker) for group in lost[:2]] == [(0, "hung"), (1, "hung")]
    assert all(0.3 <= group.held_s < 4 for group in lost[:2])
    assert await buffer.pop_reassigned() == []
    assert (await buffer.metrics())["buffer/reissued"] == len(lost)


async def test_a_late_result_is_accepted_and_that_of_the_reissued_order_is_ignored(tmp_path: Path):
    buffer = make_buffer(tmp_path, max_off_policy_steps=0, group_timeout_s=0.2)
    world = World(buffer=buffer, rng=random.Random(0))
    (order,) = await buffer.next_orders("late", 1) or []
    others = await buffer.next_orders("other", 2)
    assert others is not None
    again = await buffer.next_orders("other", 3)
    assert again is not None and order in again
    ledger = await buffer.ledger()
    assert (ledger.issued, ledger.in_flight) == (12, 12)
    assert await buffer.put(world._finished(order, versions=(0, 0), is_empty=False)) == [True]
    assert await buffer.put(world._finished(order, versions=(0, 0), is_empty=False)) == [False]
    assert (await buffer.metrics())["buffer/puts_ignored"] == 1
    assert (await buffer.ledger()).closes()
    assert order.group_id not in buffer._assignments


async def test_a_group_dropped_on_arrival_is_replaced_at_once_by_one_order(tmp_path: Path):
    """Dynamic sampling: one new order for each dropped group, while the others are still played."""
    buffer = make_buffer(tmp_path, max_off_policy_steps=0, group_timeout_s=WAIT_S)
    orders = await buffer.next_orders("a", 9)
    assert orders is not None and [order.group_id for order in orders] == [0, 1, 2]
    summary = make_summary([0.5] * 4, stop_reasons=[OK, OK, OK, SURPLUS])
    table = pa.table({"group_id": [1] * 4, "trajectory": [0, 1, 2, 3]})
    for dropped, refill in ((orders[1], 3), (orders[0], 4)):
        flat = replace(summary, group_id=dropped.group_id, task_key=dropped.task_key)
        await buffer.put(GroupBatch.of([FinishedGroup(order=dropped, summary=flat, payload=table)]))
        new = await buffer.next_orders("a", 9)
        assert new is not None and [order.group_id for order in new] == [refill]
    assert (await buffer.ledger()).dropped["flat"] == 6
    assert (await buffer.ledger()).dropped["surplus"] == 2
    assert (await buffer.metrics())["buffer/slots_taken"] == GROUPS_PER_STEP


async def test_a_take_that_times_out_names_the_groups_held_longest(tmp_path: Path):
    """But not each of thousands."""
    buffer = make_buffer(tmp_path, max_off_policy_steps=9, group_timeout_s=WAIT_S)
    assert len(await buffer.next_orders("a", 20) or []) == 20
    await buffer.reassign_groups_of("a")
    assert [order.group_id for order in await buffer.next_orders("b", 9) or []] == [*range(9)]
    with pytest.raises(TimeoutError) as raised:
        await buffer.take(GROUPS_PER_STEP, 0, timeout_s=0.05)
    text = str(raised.value)
    assert [f"group {number} with b for" in text for number in range(9)] == [True] * 8 + [False]
    assert [f"group {number} waits" in text for number in range(9, 20)] == [True] * 8 + [False] * 3
    assert text.endswith("; and 4 others")
