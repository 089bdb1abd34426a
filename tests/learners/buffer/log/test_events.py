"""What the journal says around a checkpoint, and what a buffer makes of it."""

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from actors.trajectory import GroupOrder, StopReason
from learners.buffer.buffer import BufferSizes
from learners.buffer.log import write_ahead_log
from learners.buffer.log.events import BufferEventLog, EventKind, events_around, read_order, read_summary
from learners.buffer.log.segments import LogEntry, frame_of
from learners.buffer.log.write_ahead_log import WriteAheadLog
from simulators.users.quality_metrics import GaugeCounts
from tests.fakes import make_key, make_summary
from tests.learners.fake_disk import FillingDisk
from tests.learners.local_buffer import LocalBuffer, delivery_of, make_local_buffer

LIMIT_S = 20.0
GOOD, FLAT = [0.0, 1.0], [0.5, 0.5]
SIZES = BufferSizes(group_size=2, groups_per_step=1, max_off_policy_steps=1, seed=0)


def entries(*kinds: str | int, first: int = 0) -> list[LogEntry]:
    """A number stands for going back to it."""
    return [
        LogEntry(number=number, kind=EventKind.REWOUND, facts={"to": kind})
        if isinstance(kind, int)
        else LogEntry(number=number, kind=kind, facts={})
        for number, kind in enumerate(kinds, start=first)
    ]


def numbers(found: list[LogEntry], *, position: int) -> tuple[list[int], list[int]] | None:
    memory = events_around(found, position=position)
    return memory and (list(memory.before), [entry.number for entry in memory.after])


def test_what_was_gone_back_from_is_forgotten():
    found = entries("issued", "issued", "taken", 1, "issued", "taken")
    assert numbers(found, position=0) == ([], [0, 3, 4, 5])
    assert numbers(found, position=1) == ([], [4, 5]), "and what was finished then was played again"
    assert numbers(found, position=5) == ([0, 3, 4], [5])
    assert numbers(found, position=6) == ([0, 3, 4, 5], [])


def test_a_checkpoint_of_a_way_that_was_left_goes_on_with_nothing_of_the_other():
    found = entries("issued", "issued", "taken", 1, "issued", "taken")
    assert numbers(found, position=2) is None and numbers(found, position=3) is None
    back = [*found, *entries(2, "issued", first=6)]
    assert numbers(back, position=2) == ([], [7])
    assert numbers(back, position=0) == ([], [0, 6, 7])


def test_a_journal_that_does_not_reach_the_checkpoint_says_nothing():
    found = entries("issued", "issued", first=5)
    assert numbers(found, position=4) is None and numbers(found, position=8) is None
    assert numbers(found, position=5) == ([], [5, 6])
    assert numbers([], position=0) == ([], []) and numbers([], position=1) is None


def test_orders_and_summaries_come_back_as_they_were():
    summary = replace(
        make_summary([0.1 + 0.2, math.inf], stop_reasons=[StopReason.TERMINATED, StopReason.USER_LEFT]),
        gauges=GaugeCounts(dialogues=2, leaks=1),
        rewards=[1 / 3, -0.0],
    )
    order = GroupOrder(group_id=3, task_key=make_key("travel"), group_size=2, seed=7, num_extra=1)
    facts = {"orders": [order], "summaries": [summary]}
    header = json.loads(frame_of(LogEntry(number=0, kind="finished", facts=facts))[1])
    assert read_order(header["orders"][0]) == order
    assert read_summary(header["summaries"][0]) == summary


async def finish(feed: LocalBuffer, rewards: list[float], *, version: int = 0) -> int:
    (order,) = await feed.next_orders("a", 1) or []
    assert await feed.put(delivery_of(order, rewards, versions=(version, version))) == [True]
    return order.group_id


async def step(feed: LocalBuffer, version: int) -> list[int]:
    ids = [group.order.group_id for group in await feed.take(1, version, LIMIT_S)]
    await feed.mark_trained(ids, version + 1)
    await feed.release(ids, version + 1)
    return ids


async def test_going_back_to_a_checkpoint_leaves_what_came_after_it_for_good(tmp_path: Path):
    """The same groups are drawn again, and played again: nothing of the way that was left is taken for
    them."""
    first = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    state = json.loads(json.dumps(await first.state()))
    await finish(first, GOOD)
    await first.close()
    second = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await second.restore(state, 0) == -1
    assert await finish(second, FLAT) == 0
    await second.close()
    third = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await third.restore(state, 0, replay=True) == 0
    ledger = await third.ledger()
    assert (ledger.dropped["flat"], ledger.in_flight) == (2, 0)
    await third.close()


async def test_what_was_played_again_after_going_back_is_what_was_trained(tmp_path: Path):
    first = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await finish(first, GOOD) == 0
    state = json.loads(json.dumps(await first.state()))
    await first.close()
    second = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await second.restore(state, 0) == -1
    assert await finish(second, [1.0, 0.0]) == 0, "played again, and better"
    assert await step(second, 0) == [0]
    await second.close()
    for checkpoint in (state, None):
        third = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
        assert await third.restore(checkpoint, 0, replay=True) == 1
        (group,) = await third.take(1, 0, LIMIT_S)
        assert list(group.summary.rewards) == [1.0, 0.0]
        await third.close()


async def test_steps_are_taken_again_and_nothing_is_handed_out_before_the_last_is_live(tmp_path: Path):
    first = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    await finish(first, GOOD)
    await finish(first, GOOD)
    assert [await step(first, version) for version in (0, 1)] == [[0], [1]]
    open_orders = await first.next_orders("a", 1) or []
    await finish(first, GOOD, version=2)
    await first.close()

    again = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await again.restore(None, 0, replay=True) == 2
    assert again._issue() is None
    assert await step(again, 0) == [0]
    assert again._issue() is None
    ids = [group.order.group_id for group in await again.take(1, 1, LIMIT_S)]
    await again.mark_trained(ids, 2)
    assert again._issue() is None, "the weights of the last step are not live yet"
    await again.release(ids, 2)
    assert await again.next_orders("b", 1) == open_orders
    assert [group.order.group_id for group in await again.take(1, 2, LIMIT_S)] == [3]
    assert (await again.ledger()).closes()
    await again.close()


@pytest.mark.parametrize("replay", [True, False])
async def test_a_lost_journal_costs_what_was_finished_and_no_task(tmp_path: Path, replay: bool):
    first = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    ready = await finish(first, GOOD)
    state = json.loads(json.dumps(await first.state()))
    await first.close()
    (tmp_path / "journal" / "entries-000000000000.log").unlink()
    second = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await second.restore(state, 0, replay=replay) == -1
    assert await finish(second, GOOD) == ready
    later = json.loads(json.dumps(await second.state()))
    assert later["journal"]["position"] > state["journal"]["position"], "no number is given twice"
    await second.close()
    third = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await third.restore(later, 0, replay=True) == 0
    assert await step(third, 0) == [ready]
    await third.close()


async def test_a_full_disk_holds_deliveries_and_steps_says_so_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write_ahead_log, "RETRY_S", 0.01)
    disk = FillingDisk()
    event_log = BufferEventLog(tmp_path / "journal", log=WriteAheadLog(tmp_path / "journal", disk=disk))
    feed = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S, event_log=event_log)
    (order,) = await feed.next_orders("a", 1) or []
    await event_log.written()
    disk.is_full = True
    putting = asyncio.ensure_future(feed.put(delivery_of(order, GOOD)))
    await asyncio.sleep(0.1)
    assert not putting.done(), "nobody is told that it has arrived"
    with pytest.raises(TimeoutError, match="the write-ahead log waits for the disk: No space left on device"):
        await feed.take(1, 0, timeout_s=0.1)
    assert await feed.next_orders("b", 1), "others are served meanwhile"
    disk.is_full = False
    assert await putting == [True]
    assert await step(feed, 0) == [0]
    assert (await feed.metrics())["buffer/journal_failures"] > 0
    await feed.close()
    again = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await again.restore(None, 0, replay=True) == 1
    assert await step(again, 0) == [0]
    await again.close()
