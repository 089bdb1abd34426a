"""One call to every learner rank, with a deadline, and what its failures mean: a death, which new learners
cure, or an error that new learners would raise too."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError
from torch.distributed import DistError

from cluster.console.log import warn
from cluster.workers.learner_replay import LearnerWork

TICK_EVERY_S = 5.0
"""Between two calls of `tick` while learners work."""
REPORT_AFTER_S = 120.0
"""A call that takes so long is reported, and again after twice as long: a large step, or a hung learner."""
GRACE_S = 5.0
"""Wait for the other ranks once one has failed: a death is noticed a moment after its peers raise."""
RESUME = "resume from the last checkpoint with `userrl train RUN_FOLDER`"


class LearnerError(RuntimeError):
    """A learner failed in a way that new learners would share; the run can resume from its last
    checkpoint."""


class LostLearnerError(RuntimeError):
    """A learner died or hangs: new learners may do better."""


class SilentLearnerError(LostLearnerError):
    """A learner did not answer in time."""


class BrokenSendError(RuntimeError):
    """A learner died or hangs while it sent weights in a group with engines. The send is not retried: the
    engines hold parts of two versions, and may wait in the group for ever."""


def ask(
    actors: Sequence[ActorHandle],
    work: LearnerWork,
    *,
    timeout_s: float,
    tick: Callable[[], object] = lambda: None,
    with_payload: bool = False,
) -> list[Any]:
    """Every rank's answer, rank 0 first. Raises soon after a rank fails, even if its peers wait in a
    collective; RLlib's `foreach_learner` would wait for them all. Calls `tick` every few seconds.

    With `with_payload` the work returns (answer, payload), and this returns (answer, reference to the
    payload): it stays where it was made and is owned by the driver, so it outlives the learner."""
    if not with_payload:
        return _answers([actor.apply.remote(work) for actor in actors], timeout_s=timeout_s, tick=tick)
    calls: list[Any] = [actor.apply.options(num_returns=2).remote(work) for actor in actors]
    answers = _answers([answer for answer, _ in calls], timeout_s=timeout_s, tick=tick)
    return [(answer, payload) for answer, (_, payload) in zip(answers, calls, strict=True)]


def _answers(calls: Sequence[ray.ObjectRef], *, timeout_s: float, tick: Callable[[], object]) -> list[Any]:
    pending = {call: rank for rank, call in enumerate(calls)}
    answers: dict[int, Any] = {}
    errors: dict[int, RayError] = {}
    asked_at, report_after_s = time.monotonic(), REPORT_AFTER_S
    deadline = asked_at + timeout_s
    while pending:
        left_s = max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(list(pending), timeout=min(left_s, TICK_EVERY_S))
        if ready:
            rank = pending.pop(ready[0])
            try:
                answers[rank] = ray.get(ready[0])
            except RayError as error:
                errors[rank] = error
                deadline = min(deadline, time.monotonic() + GRACE_S)
            continue
        if left_s <= TICK_EVERY_S:
            break
        if (waited_s := time.monotonic() - asked_at) > report_after_s:
            report_after_s *= 2
            ranks = ", ".join(map(str, pending.values()))
            warn(f"waited {waited_s:.0f} s of at most {timeout_s:.0f} s for learners: {ranks}")
        tick()
    if errors or pending:
        raise as_failure(errors, timeout_s=timeout_s, silent=list(pending.values()))
    return [answers[rank] for rank in sorted(answers)]


def as_failure(
    errors: Mapping[int, RayError], *, timeout_s: float, silent: Sequence[int] = ()
) -> LostLearnerError | LearnerError:
    """What to raise: a death explains the other ranks' errors; an error without a death would come back with
    new learners."""
    raised = {rank: error for rank, error in errors.items() if isinstance(error, RayTaskError)}
    for rank in errors.keys() - raised.keys():
        return LostLearnerError(f"learner {rank} died")
    for rank, error in sorted(raised.items()):
        if not _has_lost_peer(error.cause):
            failure = LearnerError(f"learner {rank} failed: {_reason(error.cause)}")
            failure.__cause__ = error
            return failure
    if raised:
        return LostLearnerError(f"learner {min(raised)} lost its process group")
    return SilentLearnerError(f"learner {min(silent)} did not answer for {timeout_s:.0f} s")


def _has_lost_peer(error: BaseException) -> bool:
    """Whether a collective broke: NCCL's errors have a class, gloo's only a text."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, ObjectLostError):
        return f"a table of dialogues is lost with the process that held it: {RESUME}"
    if isinstance(error, GetTimeoutError):
        return f"a table of dialogues did not arrive in time: {RESUME}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
