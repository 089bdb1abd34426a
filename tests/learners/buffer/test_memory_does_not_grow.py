"""Memory of the buffer, its event log and its archive does not grow with steps. Without Ray, so that every
byte is Python's or Arrow's, and is counted."""

import gc
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from learners.buffer.buffer import BufferSizes
from tests.learners.local_buffer import LocalBuffer, batch_of, make_local_buffer

pytestmark = pytest.mark.medium

LIMIT_S = 20.0
SIZES = BufferSizes(group_size=2, groups_per_step=1, max_off_policy_steps=1, seed=0)
WARM_UP, NUM_STEPS = 40, 200
MOST_BYTES = 45_000
"""An entry of a dict for each group would be 80,000. The event loop keeps up to a hundred cancelled timers:
up to 25,000."""


async def finish(buffer: LocalBuffer, rewards: list[float], *, version: int) -> None:
    """One group, from its order to its arrival, with a published turn."""
    (order,) = await buffer.next_orders("a", 1) or []
    await buffer.publish_turns("a", [order.group_id], pa.py_buffer(bytes(1000)))
    assert await buffer.put(batch_of(order, rewards, versions=(version, version))) == [True]


async def step(buffer: LocalBuffer, version: int) -> None:
    ids = [group.order.group_id for group in await buffer.take(1, version, LIMIT_S)]
    await buffer.mark_trained(ids, version + 1)
    await buffer.release(ids, version + 1)


async def held(buffer: LocalBuffer) -> int:
    """Bytes in use, once all pending writes are done."""
    await buffer._archive.flush()
    await buffer._event_log.written()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


@pytest.mark.parametrize("checkpoint_steps", [10, NUM_STEPS + 1], ids=["checkpoints", "none"])
async def test_memory_of_the_buffer_does_not_grow_with_steps(tmp_path: Path, checkpoint_steps: int):
    buffer = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    tracemalloc.start()
    try:
        warm = 0
        for version in range(NUM_STEPS):
            await finish(buffer, [0.5, 0.5], version=version)  # flat: dropped at once
            await finish(buffer, [0.0, 1.0], version=version)
            await step(buffer, version)
            if (version + 1) % checkpoint_steps == 0:
                state = await buffer.state()
                await buffer.trim_log(state["journal"]["first"])
            if version + 1 == WARM_UP:
                warm = await held(buffer)
        grown = await held(buffer) - warm
    finally:
        tracemalloc.stop()
        await buffer.close()
    assert grown < MOST_BYTES
