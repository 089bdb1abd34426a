"""Benchmark of the buffer: trajectories from a rollout process through put and take to micro-batches.

Ours (Arrow tables in Ray's object store, references in the buffer) against the two forms that other systems
use: dicts of Python lists, and pickled records, both by value through the buffer's process. All run in the
same Ray, between the same three processes; all groups of a step are at hand when the clock starts.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import ray

from bench.buffer_formats import GROUP_SIZE, TIMEOUT_S, Consumer, Producer, UnwrittenBuffer, ValueBuffer
from bench.buffer_memory import memory
from bench.harness import RUNS, compare, interleaved, run
from bench.result_rows import Row
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from simulators.task import TaskSource

PAIRS = (
    ("Arrow by reference", ("Python lists", "pickled records")),
    ("Arrow, filled from records", ("Python lists, filled from records", "pickled records")),
)
"""Ours, and what it is compared with. Records are what all begin with: pickling them needs no filling."""
LENGTHS = {"2,300 tokens": (1, 128), "9,200 tokens": (4, 64)}
"""Of a trajectory, with how many times longer than short ones its turns are, and groups of a run: replies of
one or two sentences, and a policy that thinks before it speaks."""


def measure(quick: bool) -> list[Row]:
    """Trajectories a second from the first put to the last micro-batch; then memory as they stream by."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=2 * 2**30)
    try:
        rows = [
            row
            for tokens, (length, num_groups) in LENGTHS.items()
            for row in _throughput(
                tokens, length=length, num_groups=8 if quick else num_groups, runs=2 if quick else RUNS
            )
        ]
    finally:
        ray.shutdown()
    return rows + memory(num_trajectories=20_000 if quick else 1_000_000)


def _throughput(tokens: str, *, length: int, num_groups: int, runs: int) -> list[Row]:
    producer: Any = ray.remote(Producer).remote(num_groups, length=length)
    consumer: Any = ray.remote(Consumer).remote()
    values: Any = ray.remote(ValueBuffer).remote()
    tables = make_buffer(UnwrittenBuffer, groups_per_step=num_groups)

    def seconds(send: Callable[[], Any], take: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        ray.get(send(), timeout=TIMEOUT_S)
        taken = ray.get(take(), timeout=TIMEOUT_S)
        return time.perf_counter() - began, taken

    def by_value(send: Callable[[], Any], take: Any) -> float:
        taken_s, _ = seconds(send, partial(take.remote, values, num_groups))
        return num_groups * GROUP_SIZE / taken_s

    def arrow(*, fill: bool) -> float:
        taken_s, (_, ids) = seconds(
            partial(producer.send_tables.remote, tables, fill=fill),
            partial(consumer.take_tables.remote, tables, num_groups),
        )
        ray.get(tables.mark_trained.remote(ids, 0), timeout=TIMEOUT_S)
        ray.get(tables.release.remote(ids, 0), timeout=TIMEOUT_S)
        return num_groups * GROUP_SIZE / taken_s

    rows_of = partial(producer.send_rows.remote, values)
    found = interleaved(
        {
            "Arrow by reference": partial(arrow, fill=False),
            "Arrow, filled from records": partial(arrow, fill=True),
            "Python lists": lambda: by_value(partial(rows_of, fill=False), consumer.take_rows),
            "Python lists, filled from records": lambda: by_value(
                partial(rows_of, fill=True), consumer.take_rows
            ),
            "pickled records": lambda: by_value(
                partial(producer.send_records.remote, values), consumer.take_records
            ),
        },
        runs=runs,
    )
    rows = [
        row
        for ours, others in PAIRS
        for other in others
        for row in compare(
            {f"{tokens}, {ours}": found[ours], f"{tokens}, {other}": found[other]},
            bench="buffer",
            metric="put to micro-batch",
            unit="trajectories/s",
            ratio_to=f"{tokens}, {other}",
            ours=f"{tokens}, {ours}",
        )
    ]
    num_bytes: Any = ray.get(producer.num_bytes.remote(), timeout=TIMEOUT_S)
    megabytes = num_bytes / num_groups / GROUP_SIZE / 1e6
    rows += [
        Row(
            bench="buffer",
            case=f"{tokens}, {ours}",
            metric="put to micro-batch, bytes of the tables",
            value=megabytes * median(found[ours]),
            unit="MB/s",
            runs=runs,
        )
        for ours, _ in PAIRS
    ]
    for actor in (producer, consumer, values, tables):
        ray.kill(actor)
    return list(dict.fromkeys(rows))


def make_buffer(kind: type[BufferActor], *, groups_per_step: int, max_off_policy_steps: int = 0) -> Any:
    """The buffer as training has it, in a folder of its own."""
    sizes = BufferSizes(
        group_size=GROUP_SIZE,
        groups_per_step=groups_per_step,
        max_off_policy_steps=max_off_policy_steps,
        seed=0,
    )
    source = TaskSource({"function": 1.0}, split="train", seed=0, difficulty=0)
    create: Any = ray.remote(kind)
    return create.options(num_cpus=0, max_concurrency=4096).remote(
        sizes,
        source=source,
        run_folder=Path(tempfile.mkdtemp()),
        group_timeout_s=TIMEOUT_S,
    )


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
