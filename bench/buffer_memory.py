"""Benchmark of the buffer's memory: more trajectories are open than the object store holds, so that Ray
spills to disk, and far more pass than fit into memory or on disk.

The store is small on purpose. What is watched are the private bytes of the buffer's process and of the one
that takes from it, the store's own bytes, and the files that were spilled.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from actors.group_transport import GroupSender
from bench.buffer_formats import TIMEOUT_S, UnwrittenBuffer, finished, make_group
from bench.result_rows import Row
from learners.buffer.buffer import BufferSizes
from learners.buffer.group_store import fetch_groups
from simulators.task import TaskSource

STORE_BYTES = 256 * 2**20
GROUP_SIZE = 512
"""Many small trajectories a group: a million then pass within minutes."""
NUM_TURNS = 1
GROUPS_PER_STEP = 16
MOST_OFF_POLICY_STEPS = 23
"""384 slots of about 1.4 MB: twice the store."""
MB = 1e6


class Streamer:
    """Sends copies of one group under ever new orders, as fast as slots are free."""

    async def stream(self, buffer: Any, num_groups: int) -> None:
        deliveries = GroupSender(lambda delivery: buffer.put.remote(delivery))
        group = make_group(0, size=GROUP_SIZE, num_turns=NUM_TURNS)
        template = None
        while num_groups:
            orders = await buffer.next_orders.remote("streamer", min(8, num_groups))
            num_groups -= len(orders)
            for order in orders:
                template = template or finished(order, group)
                summary = dataclasses.replace(template.summary, group_id=order.group_id)
                await deliveries.send(dataclasses.replace(template, order=order, summary=summary))


class Taker:
    """Takes steps and reads every byte of them."""

    def step(self, buffer: Any, step: int) -> int:
        groups = ray.get(buffer.take.remote(GROUPS_PER_STEP, 0, timeout_s=TIMEOUT_S), timeout=TIMEOUT_S)
        tables = fetch_groups([group.payload for group in groups], timeout_s=TIMEOUT_S)
        for table in tables:
            assert int(table["completion_ids"].combine_chunks().flatten().to_numpy().sum()) > 0
            np.frombuffer(table["context_ids"].combine_chunks().flatten().buffers()[1], np.int32).sum()
        ids = [group.order.group_id for group in groups]
        ray.get(buffer.mark_trained.remote(ids, step), timeout=TIMEOUT_S)
        ray.get(buffer.release.remote(ids, 0), timeout=TIMEOUT_S)
        return len(ids) * GROUP_SIZE


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes at one moment."""

    private: int
    """Of the buffer's, the taker's and the driver's process."""
    store: int
    """Of the store, as far as any process has touched it."""
    spilled: int
    """In files on disk."""


def memory(*, num_trajectories: int) -> list[Row]:
    """Streams that many; what memory was in the first quarter, once the slots were full, and in the last."""
    folder = tempfile.mkdtemp()
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
        object_spilling_directory=folder,
    )
    try:
        return _rows(*_stream(num_trajectories // GROUP_SIZE // GROUPS_PER_STEP, spilled=Path(folder)))
    finally:
        ray.shutdown()


def _stream(num_steps: int, *, spilled: Path) -> tuple[list[Memory], float]:
    """Memory after each step, and trajectories a second."""
    sizes = BufferSizes(
        group_size=GROUP_SIZE,
        groups_per_step=GROUPS_PER_STEP,
        max_off_policy_steps=MOST_OFF_POLICY_STEPS,
        seed=0,
    )
    source = TaskSource({"function": 1.0}, split="train", seed=0, difficulty=0)
    create: Any = ray.remote(UnwrittenBuffer)
    buffer = create.options(num_cpus=0, max_concurrency=4096).remote(
        sizes,
        source=source,
        run_folder=spilled,
        group_timeout_s=TIMEOUT_S,
    )
    streamer: Any = ray.remote(Streamer).remote()
    taker: Any = ray.remote(Taker).remote()
    raylet = next(one for one in psutil.Process().children(recursive=True) if one.name() == "raylet")
    actors = [_process_of(actor) for actor in (buffer, taker, streamer)]
    processes = [psutil.Process(), *actors, raylet]
    began = time.perf_counter()
    num_groups = num_steps * GROUPS_PER_STEP
    streaming = streamer.stream.remote(buffer, num_groups)
    _wait_until_full(buffer, num_groups=min(num_groups, sizes.num_slots))
    seen, num_taken = [], 0
    for step in range(num_steps):
        taken: Any = ray.get(taker.step.remote(buffer, step), timeout=TIMEOUT_S)
        num_taken += taken
        if step % max(1, num_steps // 64) == 0:
            seen.append(_memory(processes, spilled=spilled))
    ray.get(streaming, timeout=TIMEOUT_S)
    return seen, num_taken / (time.perf_counter() - began)


def _rows(seen: list[Memory], per_second: float) -> list[Row]:
    quarter = max(1, len(seen) // 4)
    rows = [_row("all", "trajectories through it", per_second, "trajectories/s")]
    for name, part in (("first quarter", seen[:quarter]), ("last quarter", seen[-quarter:])):
        rows += [
            _row(name, "private memory of buffer, taker and driver", _most(part, "private"), "MB"),
            _row(name, "object store", _most(part, "store"), "MB"),
            _row(name, "spilled to disk", _most(part, "spilled"), "MB"),
        ]
    return rows


def _most(part: list[Memory], name: str) -> float:
    return max(getattr(one, name) for one in part) / MB


def _row(case: str, metric: str, value: float, unit: str) -> Row:
    case = f"a stream twice as wide as the store, {case}"
    return Row(bench="buffer", case=case, metric=metric, value=value, unit=unit, runs=1)


def _process_of(actor: Any) -> psutil.Process:
    pid: int = ray.get(actor.__ray_call__.remote(lambda self: __import__("os").getpid()), timeout=TIMEOUT_S)
    return psutil.Process(pid)


def _wait_until_full(buffer: Any, *, num_groups: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    metrics: Any = {"buffer/groups_ready": 0}
    while metrics["buffer/groups_ready"] < num_groups:
        assert time.monotonic() < deadline, "the slots do not fill"
        metrics = ray.get(buffer.metrics.remote(), timeout=TIMEOUT_S)
        time.sleep(0.1)


def _shared_bytes(process: psutil.Process) -> int:
    """Its part of the memory that it shares with others in files that are no files, as the store's is."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Shmem:"))


def _memory(processes: list[psutil.Process], *, spilled: Path) -> Memory:
    return Memory(
        private=sum(process.memory_full_info().uss for process in processes[:3]),
        store=sum(map(_shared_bytes, processes)),
        spilled=sum(_size(file) for file in spilled.rglob("*") if file.is_file()),
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # its objects were released meanwhile
        return 0
