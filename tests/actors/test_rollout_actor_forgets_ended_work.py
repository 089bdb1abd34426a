"""A rollout actor lets go of feeds that have ended."""

from concurrent.futures import Future
from typing import Any

from actors.concurrency_target import ConcurrencyTarget
from actors.rollout_actor import RolloutActor


def work(*, error: Exception | None = None, is_over: bool = True) -> "Future[None]":
    future: Future[None] = Future()
    if error:
        future.set_exception(error)
    elif is_over:
        future.set_result(None)
    return future


def test_feeds_that_have_ended_are_let_go_and_those_that_failed_are_told_of():
    actor = RolloutActor.__new__(RolloutActor)
    feeds: dict[Any, Future[None]] = {
        "training": work(is_over=False),
        "first evaluation": work(),
        "failed": work(error=ValueError("why")),
        "second evaluation": work(),
    }
    actor._work = dict(feeds)
    actor._demands = {feed: ConcurrencyTarget(places=1.0, most=8, group_size=1) for feed in feeds}
    actor._forget_ended()
    assert list(actor._work) == list(actor._demands) == ["training", "failed"]
