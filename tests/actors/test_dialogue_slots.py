"""Dialogue slots are granted first come, first served, and none is ever lost."""

import asyncio

import pytest

from actors.dialogue_slots import DialogueSlots, SlotLease


async def settle() -> None:
    """Runs the event loop until all tasks wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_oldest_request_is_served_first_even_if_a_later_one_would_fit():
    slots, granted = DialogueSlots(4), []

    async def acquire(name: str, num: int) -> None:
        await slots.acquire(num)
        granted.append(name)

    await slots.acquire(3)
    async with asyncio.TaskGroup() as tasks:
        for name, num in (("four", 4), ("one", 1)):
            tasks.create_task(acquire(name, num))
        await settle()
        assert (granted, slots.num_free) == ([], 1)
        slots.release(3)
        await settle()
        assert (granted, slots.num_free) == (["four"], 0)
        slots.release(2)
        await settle()
        assert (granted, slots.num_free) == (["four", "one"], 1)


@pytest.mark.parametrize("is_granted", [False, True])
async def test_a_request_that_is_cancelled_leaves_its_slots_to_the_next(is_granted: bool):
    """Also in the moment in which they are granted to it."""
    slots = DialogueSlots(2)
    await slots.acquire(2)
    first, second = (asyncio.create_task(slots.acquire(2)) for _ in range(2))
    await settle()
    if is_granted:
        slots.release(2)
    first.cancel()
    if not is_granted:
        slots.release(2)
    await asyncio.wait_for(second, timeout=5)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert slots.num_free == 0


async def test_more_slots_than_the_capacity_are_refused_at_once():
    with pytest.raises(ValueError, match="9 dialogues do not fit dialogues_per_actor=8"):
        await DialogueSlots(8).acquire(9)


async def test_a_slot_is_released_when_its_slice_ends_and_acquired_again_for_the_next_turn():
    slots = DialogueSlots(1)
    await slots.acquire()
    lease = SlotLease(slots, slice_s=0.01)
    other = asyncio.create_task(slots.acquire())
    await asyncio.wait_for(other, timeout=5)  # while the first dialogue still waits for its user
    renewing = asyncio.create_task(lease.renew())
    await settle()
    assert not renewing.done()
    slots.release()
    await asyncio.wait_for(renewing, timeout=5)
    assert slots.num_free == 0
    lease.end()
    assert slots.num_free == 1


async def test_a_slot_without_a_slice_is_kept_to_the_end_and_released_once():
    slots = DialogueSlots(1)
    await slots.acquire()
    lease = SlotLease(slots, slice_s=None)
    await lease.renew()
    assert slots.num_free == 0
    lease.end()
    lease.end()
    assert slots.num_free == 1


async def test_a_smaller_capacity_revokes_no_slot_and_a_larger_one_serves_the_waiting():
    slots = DialogueSlots(4)
    await slots.acquire(4)
    slots.resize(2)
    assert slots.num_free == -2
    waiting = asyncio.create_task(slots.acquire(2))
    slots.release(2)
    await asyncio.sleep(0)
    assert not waiting.done()
    slots.resize(4)
    await waiting
    assert slots.num_free == 0
