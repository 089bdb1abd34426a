"""One question to every learner, and what its failures mean: a death that new learners mend, or an error that
they would share."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError
from torch.distributed import DistError

from cluster.console.progress import warn
from cluster.workers.learner_replay import LearnerWork

MEANWHILE_EVERY_S = 5.0
"""Between two looks at other things while learners work."""
SAY_AFTER_S = 120.0
"""An answer that is waited for so long is told of, and again after twice as long: a large step, or one who is
stuck."""
GRACE_S = 5.0
"""Wait for the other ranks once one has failed: who died is seen a moment after its peers complain."""
GO_ON = "go on from the last checkpoint with `userrl train RUN_FOLDER`"


class LearnerError(RuntimeError):
    """A learner failed in a way that new ones would share; the run goes on from its last checkpoint."""


class LostLearnerError(RuntimeError):
    """A learner died or hangs: new ones may do better."""


class SilentLearnerError(LostLearnerError):
    """A learner has not answered in time."""


class BrokenSendError(RuntimeError):
    """A learner died or hangs while learners and engines were in a group that sends weights. It is not
    asked again: what the engines hold is part old, part new, and they may wait in it for ever."""


def ask(
    actors: Sequence[ActorHandle],
    work: LearnerWork,
    *,
    timeout_s: float,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Every rank's answer, in their order. Raises soon after a rank fails, whatever its peers wait for, where
    RLlib's `foreach_learner` would wait for them all. While it waits it calls `meanwhile` now and then."""
    return _answers([actor.apply.remote(work) for actor in actors], timeout_s=timeout_s, meanwhile=meanwhile)


def ask_for_payload(
    actors: Sequence[ActorHandle],
    work: LearnerWork,
    *,
    timeout_s: float,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[tuple[Any, ray.ObjectRef]]:
    """As `ask`, of work that returns (answer, payload): the payload stays where it was made, and is the
    caller's. What a learner puts into the object store itself dies with it."""
    calls: list[Any] = [actor.apply.options(num_returns=2).remote(work) for actor in actors]
    answers = _answers([answer for answer, _ in calls], timeout_s=timeout_s, meanwhile=meanwhile)
    return [(answer, payload) for answer, (_, payload) in zip(answers, calls, strict=True)]


def _answers(
    calls: Sequence[ray.ObjectRef], *, timeout_s: float, meanwhile: Callable[[], object]
) -> list[Any]:
    pending = {call: rank for rank, call in enumerate(calls)}
    answers: dict[int, Any] = {}
    errors: dict[int, RayError] = {}
    began, say_after_s = time.monotonic(), SAY_AFTER_S
    deadline = began + timeout_s

    def look() -> None:
        nonlocal say_after_s
        if (waited_s := time.monotonic() - began) > say_after_s:
            say_after_s *= 2
            ranks = ", ".join(map(str, pending.values()))
            warn(f"waited {waited_s:.0f} s of at most {timeout_s:.0f} for learners: {ranks}")
        meanwhile()

    while pending and (ready := _first_ready(pending, deadline=deadline, meanwhile=look)):
        rank = pending.pop(ready)
        try:
            answers[rank] = ray.get(ready)
        except RayError as error:
            errors[rank] = error
            deadline = min(deadline, time.monotonic() + GRACE_S)
    if errors or pending:
        raise as_failure(errors, timeout_s=timeout_s, silent=list(pending.values()))
    return [answers[rank] for rank in sorted(answers)]


def _first_ready(
    pending: Mapping[ray.ObjectRef, int], *, deadline: float, meanwhile: Callable[[], object]
) -> ray.ObjectRef | None:
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(list(pending), timeout=min(left_s, MEANWHILE_EVERY_S))
        if ready or left_s <= MEANWHILE_EVERY_S:
            return ready[0] if ready else None
        meanwhile()


def as_failure(
    errors: Mapping[int, RayError], *, timeout_s: float, silent: Sequence[int] = ()
) -> LostLearnerError | LearnerError:
    """What to raise: a death explains the other ranks' errors; an error without one comes back with new
    learners."""
    raised = {rank: error for rank, error in errors.items() if isinstance(error, RayTaskError)}
    for rank in errors.keys() - raised.keys():
        return LostLearnerError(f"learner {rank} died")
    for rank, error in sorted(raised.items()):
        if not _lost_its_peer(error.cause):
            failure = LearnerError(f"learner {rank} failed: {_in_one_line(error.cause)}")
            failure.__cause__ = error
            return failure
    if raised:
        return LostLearnerError(f"learner {min(raised)} lost the others")
    return SilentLearnerError(f"learner {min(silent)} did not answer for {timeout_s:.0f} s")


def _lost_its_peer(error: BaseException) -> bool:
    """Whether a collective broke: NCCL's errors have a class, gloo's only a text."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, ObjectLostError):
        return f"a table of dialogues is lost with the process that held it: {GO_ON}"
    if isinstance(error, GetTimeoutError):
        return f"a table of dialogues did not come in time: {GO_ON}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
