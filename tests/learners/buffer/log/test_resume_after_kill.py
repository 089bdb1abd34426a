"""Kill -9 of all processes at any moment: the sequence of trained groups is that of a run without kills.

Buffer, event log and archive are the real ones, without Ray; the disk loses what was not synced. The engine
is deterministic: its text is a function of group and weights, and the weights are a digest of all trained
groups in order."""

import asyncio
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.group_transport import FinishedGroup, GroupBatch
from actors.trajectory import GroupOrder
from learners.buffer.buffer import BufferSizes
from learners.buffer.log.events import BufferEventLog
from learners.buffer.log.write_ahead_log import LogClosedError
from simulators.task import TaskSource
from tests.effort import examples
from tests.fakes import make_summary
from tests.learners.fake_disk import CrashingDisk, InlineLog
from tests.learners.local_buffer import LocalBuffer

pytestmark = pytest.mark.medium

GROUPS_PER_STEP = 2
MAX_STEPS = 12
WAIT_S = 20.0
KEEP = 2
"""Checkpoints."""
T = TypeVar("T")


def says(group_id: int, weights: str) -> str:
    """The engine's text for a group."""
    return hashlib.sha256(f"{group_id} {weights}".encode()).hexdigest()[:12]


def rewards_of(group_id: int) -> list[float]:
    """A third of the groups is flat."""
    return [0.5, 0.5] if group_id % 3 == 1 else [0.0, 1.0]


def learn(weights: str, tables: list[pa.Table]) -> str:
    texts = [table["text"].to_pylist() for table in tables]
    return hashlib.sha256(f"{weights} {texts}".encode()).hexdigest()[:12]


def undisturbed(num_steps: int) -> list[tuple[list[int], str]]:
    """Group ids and weights of each synchronous step, computed directly."""
    steps, weights, ids = [], "new", iter(range(10**6))
    for _ in range(num_steps):
        mine: list[int] = []
        while len(mine) < GROUPS_PER_STEP:
            group_id = next(ids)
            if len(set(rewards_of(group_id))) > 1:
                mine.append(group_id)
        weights = learn(weights, [pa.table({"text": [says(one, weights)] * 2}) for one in mine])
        steps.append((mine, weights))
    return steps


class LoopLog(InlineLog):
    """Writes in the next iteration of the event loop, all entries of this one together."""

    def _start(self) -> None:
        asyncio.get_running_loop().call_soon(self.write)


class Crashes(RuleBasedStateMachine):
    """A run of several processes. All of `self` but the buffer, the disk and the process's own state is an
    outside record that survives every crash."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.taken: dict[int, list[tuple[int, str]]] = {}
        """By step: groups and their texts, once a learner may have seen them."""
        self.arrived: set[int] = set()
        """Groups whose arrival was confirmed."""
        self.published: dict[int, list[str]] = {}
        """Published turns by group."""
        self.checkpoints: list[tuple[dict[str, Any] | None, int, list[str]]] = [(None, 0, ["new"])]
        self.disk = CrashingDisk()

    @initialize(bound=st.sampled_from([0, 0, 1, 2]))
    def start(self, bound: int) -> None:
        self.bound = bound
        self.sizes = BufferSizes(
            group_size=2, groups_per_step=GROUPS_PER_STEP, max_off_policy_steps=bound, seed=0
        )
        self.live(CrashingDisk())

    def live(self, disk: CrashingDisk) -> None:
        """Resumes from the newest checkpoint in a new process; one that dies at once is restarted."""
        while True:
            try:
                self.run(self.resume(disk))
                return
            except (LogClosedError, OSError):
                disk = CrashingDisk(synced=disk.synced)

    async def resume(self, disk: CrashingDisk) -> None:
        self.disk = disk
        self.held: dict[int, GroupOrder] = {}
        state, step, weights = self.checkpoints[-1]
        self.weights = list(weights)
        """By policy version."""
        log = LoopLog(self.folder / "journal", disk=disk, segment_bytes=600)
        self.buffer = LocalBuffer(
            self.sizes,
            source=TaskSource({"function": 1.0}, split="train", seed=0, difficulty=0),
            run_folder=self.folder,
            group_timeout_s=3600.0,
            event_log=BufferEventLog(self.folder / "journal", log=log),
        )
        state = json.loads(json.dumps(state))
        num_steps = await self.buffer.restore(state, step, replay=True)
        assert num_steps == len([one for one in self.taken if one > step]) or num_steps == -1
        assert num_steps >= 0 or not self.taken or max(self.taken) <= step

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, WAIT_S))

    def attempt(self, work: Coroutine[Any, Any, Any]) -> None:
        """The power may fail during it."""
        try:
            self.run(work)
        except LogClosedError:
            self.restart_process(power=True, seed=0)

    @property
    def version(self) -> int:
        return len(self.weights) - 1

    @property
    def has_orders(self) -> bool:
        buffer = self.buffer._buffer
        is_open = self.buffer._issues_from_version is None
        return is_open and (bool(buffer.ids("waiting")) or buffer.num_open < self.sizes.num_slots)

    @precondition(lambda self: self.has_orders)
    @rule(num=st.integers(1, 4))
    def order(self, num: int) -> None:
        async def work() -> None:
            for order in await self.buffer.next_orders("worker", num) or []:
                assert order.group_id not in self.arrived, "finished groups are kept"
                assert order.group_id not in self.held
                partial = await self.buffer.partial_rollouts([order.group_id])
                texts = [rows.to_pybytes().decode() for rows in partial[0]]
                published = self.published.get(order.group_id, [])
                assert texts == published[: len(texts)] and order.num_completed_turns == len(texts)
                self.published[order.group_id] = texts
                self.held[order.group_id] = order

        self.attempt(work())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.held)))
        text = f"turn {len(self.published[group_id])} of {group_id}"
        self.published[group_id].append(text)
        self.attempt(self.buffer.publish_turns("worker", [group_id], pa.py_buffer(text.encode())))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, min_size=1, max_size=3))

        async def work() -> None:
            groups = [self.played(self.held.pop(group_id)) for group_id in ids]
            assert await self.buffer.put(GroupBatch.of(groups)) == [True] * len(groups)
            self.arrived |= set(ids)

        self.attempt(work())

    def played(self, order: GroupOrder) -> FinishedGroup:
        size, group_id = order.group_size, order.group_id
        summary = make_summary(rewards_of(group_id), versions=(self.version, self.version))
        table = pa.table(
            {
                "group_id": pa.array([group_id] * size, pa.int64()),
                "trajectory": pa.array(range(size), pa.int32()),
                "text": [says(group_id, self.weights[-1])] * size,
            }
        )
        summary = replace(summary, group_id=group_id, task_key=order.task_key)
        return FinishedGroup(order=order, summary=summary, payload=table)

    @precondition(lambda self: self.can_train)
    @rule()
    def train(self) -> None:
        async def work() -> None:
            version = self.version
            groups = await self.buffer.take(GROUPS_PER_STEP, version, WAIT_S)
            tables = [await group.payload for group in groups]
            texts = [table["text"][0].as_py() for table in tables]
            seen = list(zip([group.order.group_id for group in groups], texts, strict=True))
            assert self.taken.setdefault(version + 1, seen) == seen, "a repeated step has the same groups"
            assert all(version - group.summary.oldest_version <= self.bound for group in groups)
            self.weights.append(learn(self.weights[-1], tables))
            ids = [group_id for group_id, _ in seen]
            await self.buffer.mark_trained(ids, version + 1)
            await self.buffer.release(ids, version + 1)
            if version % 2:  # else a kill may come before the write
                await self.buffer._archive.flush()

        self.attempt(work())

    @property
    def can_train(self) -> bool:
        fresh = sum(oldest >= self.version - self.bound for oldest, _ in self.buffer._buffer._ready)
        is_repeated = self.buffer._replay.is_active and self.version + 1 in self.taken
        return self.version < MAX_STEPS and (is_repeated or fresh >= GROUPS_PER_STEP)

    @rule()
    def checkpoint(self) -> None:
        async def work() -> None:
            state = json.loads(json.dumps(await self.buffer.state()))
            self.checkpoints.append((state, self.version, list(self.weights)))
            del self.checkpoints[:-KEEP]
            firsts = [state["journal"]["first"] if state else 0 for state, _, _ in self.checkpoints]
            await self.buffer.trim_log(min(firsts))

        self.attempt(work())

    @rule(
        power=st.booleans(),
        seed=st.integers(0, 99),
        dies_at=st.none() | st.integers(0, 40),
        full_at=st.frozensets(st.integers(0, 30), max_size=3),
    )
    def restart_process(
        self, power: bool, seed: int, dies_at: int | None = None, full_at: frozenset[int] = frozenset()
    ) -> None:
        """All processes are killed; if the power fails, unsynced bytes are lost or broken."""
        # Unstarted writes are lost with it.
        self.buffer._archive._folder = self.folder / "never"
        self.run(self.buffer._archive.flush())
        if power:
            self.disk.lose_power(random.Random(seed))
        self.live(CrashingDisk(dies_at=dies_at, full_at=full_at, synced=self.disk.synced))

    @invariant()
    def laws(self) -> None:
        if not hasattr(self, "buffer"):
            return
        ledger = self.run(self.buffer.ledger())
        assert ledger.closes()
        trained = [group_id for step in sorted(self.taken) for group_id, _ in self.taken[step]]
        assert len(trained) == len(set(trained)), "none is trained twice"

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.end()
        self.loop.close()
        shutil.rmtree(self.folder)

    def end(self) -> None:
        """The run continues to its end without further faults."""
        self.restart_process(power=True, seed=1)
        while self.version < MAX_STEPS:
            if self.can_train:
                self.train()
                self.run(self.buffer._archive.flush())  # a fast disk
            elif self.has_orders:
                self.order(1)
            else:
                ids = sorted(self.held)
                groups = [self.played(self.held.pop(group_id)) for group_id in ids]
                self.run(self.buffer.put(GroupBatch.of(groups)))
        self.run(self.buffer.close())
        found = [[group_id for group_id, _ in self.taken[step]] for step in sorted(self.taken)]
        if self.bound == 0:
            wanted = undisturbed(MAX_STEPS)
            assert found == [ids for ids, _ in wanted]
            assert self.weights[1:] == [weights for _, weights in wanted], "bit for bit"
        ledger = self.run(self.buffer.ledger())
        assert ledger.trained == 2 * GROUPS_PER_STEP * MAX_STEPS
        self.check_archive(found)

    def check_archive(self, trained: list[list[int]]) -> None:
        """Every resolved group is on disk once, under its step."""
        rows = pa.concat_tables(
            pq.read_table(path) for path in sorted((self.folder / "trajectories").glob("*.parquet"))
        ).to_pylist()
        keys = [(row["group_id"], row["trajectory"]) for row in rows]
        assert len(keys) == len(set(keys))
        for step, ids in enumerate(trained, start=1):
            mine = [row["group_id"] for row in rows if row["outcome"] == "trained" and row["step"] == step]
            assert sorted(set(mine)) == sorted(ids)
        ledger = self.run(self.buffer.ledger())
        assert len(keys) == ledger.trained + sum(ledger.dropped.values())


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(
    max_examples=examples(40),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
