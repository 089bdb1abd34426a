"""What the buffer, its feed, its journal and its archive hold does not grow with steps. Without Ray, so that
every byte is Python's or Arrow's, and is counted."""

import gc
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from learners.buffer.buffer import BufferSizes
from tests.learners.local_buffer import LocalBuffer, delivery_of, make_local_buffer

LIMIT_S = 20.0
SIZES = BufferSizes(group_size=2, groups_per_step=1, max_off_policy_steps=1, seed=0)
WARM_UP, NUM_STEPS = 40, 200
MOST_BYTES = 45_000
"""An entry of a dict for each group would be 80,000. Timers that were not needed wait in the event loop until
there are a hundred of them: up to 25,000."""


async def finish(feed: LocalBuffer, rewards: list[float], *, version: int) -> None:
    """One group, from its order to its delivery, with a turn told on the way."""
    (order,) = await feed.next_orders("a", 1) or []
    await feed.publish_turns("a", [order.group_id], pa.py_buffer(bytes(1000)))
    assert await feed.put(delivery_of(order, rewards, versions=(version, version))) == [True]


async def step(feed: LocalBuffer, version: int) -> None:
    ids = [group.order.group_id for group in await feed.take(1, version, LIMIT_S)]
    await feed.mark_trained(ids, version + 1)
    await feed.release(ids, version + 1)


async def held(feed: LocalBuffer) -> int:
    """Bytes, once what is on its way to the disk is there."""
    await feed._archive.flush()
    await feed._event_log.written()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


@pytest.mark.parametrize("checkpoint_steps", [10, NUM_STEPS + 1], ids=["checkpoints", "none"])
async def test_what_the_buffer_holds_does_not_grow_with_steps(tmp_path: Path, checkpoint_steps: int):
    feed = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    tracemalloc.start()
    try:
        warm = 0
        for version in range(NUM_STEPS):
            await finish(feed, [0.5, 0.5], version=version)  # flat: dropped at once
            await finish(feed, [0.0, 1.0], version=version)
            await step(feed, version)
            if (version + 1) % checkpoint_steps == 0:
                state = await feed.state()
                await feed.trim_log(state["journal"]["first"])
            if version + 1 == WARM_UP:
                warm = await held(feed)
        grown = await held(feed) - warm
    finally:
        tracemalloc.stop()
        await feed.close()
    assert grown < MOST_BYTES
