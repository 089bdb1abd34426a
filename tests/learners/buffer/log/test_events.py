"""The logged events around a checkpoint, and their replay by a buffer."""

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
from tests.learners.local_buffer import LocalBuffer, batch_of, make_local_buffer

LIMIT_S = 20.0
GOOD, FLAT = [0.0, 1.0], [0.5, 0.5]
SIZES = BufferSizes(group_size=2, groups_per_step=1, max_off_policy_steps=1, seed=0)


def entries(*kinds: str | int, first: int = 0) -> list[LogEntry]:
    """A number stands for a rewind to it."""
    return [
        LogEntry(number=number, kind=EventKind.REWOUND, facts={"to": kind})
        if isinstance(kind, int)
        else LogEntry(number=number, kind=kind, facts={})
        for number, kind in enumerate(kinds, start=first)
    ]


def numbers(found: list[LogEntry], *, position: int) -> tuple[list[int], list[int]] | None:
    events = events_around(found, position=position)
    return events and (list(events.before), [entry.number for entry in events.after])


def test_events_before_a_rewind_are_void():
    found = entries("issued", "issued", "taken", 1, "issued", "taken")
    assert numbers(found, position=0) == ([], [0, 3, 4, 5])
    assert numbers(found, position=1) == ([], [4, 5]), "groups finished then were played again"
    assert numbers(found, position=5) == ([0, 3, 4], [5])
    assert numbers(found, position=6) == ([0, 3, 4, 5], [])


def test_a_void_checkpoint_has_no_events_unless_the_run_returns_to_it():
    found = entries("issued", "issued", "taken", 1, "issued", "taken")
    assert numbers(found, position=2) is None and numbers(found, position=3) is None
    back = [*found, *entries(2, "issued", first=6)]
    assert numbers(back, position=2) == ([], [7])
    assert numbers(back, position=0) == ([], [0, 6, 7])


def test_a_log_that_does_not_reach_the_checkpoint_has_no_events():
    found = entries("issued", "issued", first=5)
    assert numbers(found, position=4) is None and numbers(found, position=8) is None
    assert numbers(found, position=5) == ([], [5, 6])
    assert numbers([], position=0) == ([], []) and numbers([], position=1) is None


def test_orders_and_summaries_survive_their_json_form():
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


async def finish(buffer: LocalBuffer, rewards: list[float], *, version: int = 0) -> int:
    (order,) = await buffer.next_orders("a", 1) or []
    assert await buffer.put(batch_of(order, rewards, versions=(version, version))) == [True]
    return order.group_id


async def step(buffer: LocalBuffer, version: int) -> list[int]:
    ids = [group.order.group_id for group in await buffer.take(1, version, LIMIT_S)]
    await buffer.mark_trained(ids, version + 1)
    await buffer.release(ids, version + 1)
    return ids


async def test_a_restore_without_replay_makes_later_events_void_for_good(tmp_path: Path):
    """The same groups are drawn and played again: their earlier results are not used."""
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


async def test_after_a_rewind_the_replayed_group_is_the_one_that_was_trained(tmp_path: Path):
    first = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await finish(first, GOOD) == 0
    state = json.loads(json.dumps(await first.state()))
    await first.close()
    second = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await second.restore(state, 0) == -1
    assert await finish(second, [1.0, 0.0]) == 0, "played again, with other rewards"
    assert await step(second, 0) == [0]
    await second.close()
    for checkpoint in (state, None):
        third = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
        assert await third.restore(checkpoint, 0, replay=True) == 1
        (group,) = await third.take(1, 0, LIMIT_S)
        assert list(group.summary.rewards) == [1.0, 0.0]
        await third.close()


async def test_steps_are_repeated_and_no_order_is_issued_before_the_last_is_live(tmp_path: Path):
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
async def test_a_lost_log_loses_finished_groups_and_no_task(tmp_path: Path, replay: bool):
    first = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    ready = await finish(first, GOOD)
    state = json.loads(json.dumps(await first.state()))
    await first.close()
    (tmp_path / "journal" / "entries-000000000000.log").unlink()
    second = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await second.restore(state, 0, replay=replay) == -1
    assert await finish(second, GOOD) == ready
    later = json.loads(json.dumps(await second.state()))
    assert later["journal"]["position"] > state["journal"]["position"], "no number is used twice"
    await second.close()
    third = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await third.restore(later, 0, replay=True) == 0
    assert await step(third, 0) == [ready]
    await third.close()


async def test_a_full_disk_blocks_arrivals_and_steps_reports_it_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write_ahead_log, "RETRY_S", 0.01)
    disk = FillingDisk()
    event_log = BufferEventLog(tmp_path / "journal", log=WriteAheadLog(tmp_path / "journal", disk=disk))
    buffer = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S, event_log=event_log)
    (order,) = await buffer.next_orders("a", 1) or []
    await event_log.written()
    disk.is_full = True
    putting = asyncio.ensure_future(buffer.put(batch_of(order, GOOD)))
    await asyncio.sleep(0.1)
    assert not putting.done(), "its arrival is not confirmed"
    with pytest.raises(TimeoutError, match="the write-ahead log waits for the disk: No space left on device"):
        await buffer.take(1, 0, timeout_s=0.1)
    assert await buffer.next_orders("b", 1), "other calls are served meanwhile"
    disk.is_full = False
    assert await putting == [True]
    assert await step(buffer, 0) == [0]
    assert (await buffer.metrics())["buffer/journal_failures"] > 0
    await buffer.close()
    again = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S)
    assert await again.restore(None, 0, replay=True) == 1
    assert await step(again, 0) == [0]
    await again.close()
