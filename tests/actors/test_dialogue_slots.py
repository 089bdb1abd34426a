"""Room: places go to whoever waits longest, and none is ever lost."""

import asyncio

import pytest

from actors.dialogue_slots import DialogueSlots, SlotLease


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_longest_comes_first_even_if_another_would_fit():
    room, entered = DialogueSlots(4), []

    async def enter(name: str, num: int) -> None:
        await room.enter(num)
        entered.append(name)

    await room.enter(3)
    async with asyncio.TaskGroup() as tasks:
        for name, num in (("four", 4), ("one", 1)):
            tasks.create_task(enter(name, num))
        await settle()
        assert (entered, room.num_free) == ([], 1)
        room.leave(3)
        await settle()
        assert (entered, room.num_free) == (["four"], 0)
        room.leave(2)
        await settle()
        assert (entered, room.num_free) == (["four", "one"], 1)


@pytest.mark.parametrize("is_given", [False, True])
async def test_who_is_cancelled_while_it_waits_leaves_its_places_to_the_next(is_given: bool):
    """Also in the moment in which they were given to it."""
    room = DialogueSlots(2)
    await room.enter(2)
    first, second = (asyncio.create_task(room.enter(2)) for _ in range(2))
    await settle()
    if is_given:
        room.leave(2)
    first.cancel()
    if not is_given:
        room.leave(2)
    await asyncio.wait_for(second, timeout=5)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert room.num_free == 0


async def test_more_than_there_are_places_is_refused_rather_than_waited_for():
    with pytest.raises(ValueError, match="9 dialogues do not fit dialogues_per_actor=8"):
        await DialogueSlots(8).enter(9)


async def test_a_place_is_given_back_when_its_slice_ends_and_taken_again_for_the_next_turn():
    room = DialogueSlots(1)
    await room.enter()
    place = SlotLease(room, slice_s=0.01)
    other = asyncio.create_task(room.enter())
    await asyncio.wait_for(other, timeout=5)  # while the first dialogue still waits for its user
    keeping = asyncio.create_task(place.keep())
    await settle()
    assert not keeping.done()
    room.leave()
    await asyncio.wait_for(keeping, timeout=5)
    assert room.num_free == 0
    place.leave()
    assert room.num_free == 1


async def test_a_place_without_a_slice_is_kept_to_the_end_and_given_back_once():
    room = DialogueSlots(1)
    await room.enter()
    place = SlotLease(room, slice_s=None)
    await place.keep()
    assert room.num_free == 0
    place.leave()
    place.leave()
    assert room.num_free == 1


async def test_a_room_that_shrinks_sends_nobody_away_and_one_that_grows_lets_the_waiting_in():
    room = DialogueSlots(4)
    await room.enter(4)
    room.resize(2)
    assert room.num_free == -2
    waiting = asyncio.create_task(room.enter(2))
    room.leave(2)
    await asyncio.sleep(0)
    assert not waiting.done()
    room.resize(4)
    await waiting
    assert room.num_free == 0
