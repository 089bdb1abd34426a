"""A rollout actor drops work sources that have ended."""

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


def test_work_that_has_ended_is_dropped_and_work_that_failed_is_kept():
    actor = RolloutActor.__new__(RolloutActor)
    sources: dict[Any, Future[None]] = {
        "training": work(is_over=False),
        "first evaluation": work(),
        "failed": work(error=ValueError("why")),
        "second evaluation": work(),
    }
    actor._work = dict(sources)
    actor._targets = {
        source: ConcurrencyTarget(engine_capacity=1.0, max_dialogues=8, group_size=1) for source in sources
    }
    actor._drop_finished_work()
    assert list(actor._work) == list(actor._targets) == ["training", "failed"]
