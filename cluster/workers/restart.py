"""Restarts a run with new processes after a loss that the running ones cannot recover from."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError

from cluster.console.log import warn

MAX_RESTARTS = 5
"""From the same checkpoint, after which the fault is not transient."""


class RestartError(RuntimeError):
    """Processes are lost that the others cannot do without; the run can resume with new ones."""


class RestartsExhaustedError(RuntimeError):
    """Restarts have made no progress."""


class LostBufferError(RestartError):
    """The buffer has died, and with it the tables that it owned."""


class LostSetupError(RestartError):
    """A process died during the set-up."""


def run_with_restarts(work: Callable[[], object], *, place: Callable[[], str]) -> None:
    """Repeats `work` after every `RestartError`; `place` names where it resumes. Raises
    `RestartsExhaustedError` after `MAX_RESTARTS` from the same place."""
    places: list[str] = []
    while True:
        try:
            work()
        except RestartError as error:
            places.append(place())
            if places.count(places[-1]) > MAX_RESTARTS:
                raise RestartsExhaustedError(
                    f"{error}: {MAX_RESTARTS} restarts made no progress beyond {places[-1]}: find the cause, "
                    "then resume with `userrl train RUN_FOLDER`"
                ) from error
            warn(f"{error}: the run resumes from {places[-1]} with new processes")
        else:
            return


def find_actor_death(error: BaseException | None) -> RayActorError | None:
    """The actor death in this error's chain of causes, if any: Ray Train, which starts RLlib's learners,
    turns one into a TypeError of its own. An actor whose constructor fails has not died."""
    while error is not None:
        if isinstance(error, RayActorError):
            return None if error.actor_init_failed else error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def cleanup_on_failure(undo: Callable[[], object]) -> Iterator[None]:
    """Context manager for set-up: on failure calls `undo`. Raises `LostSetupError` (retryable) if the cause
    was a dead process, otherwise re-raises."""
    try:
        yield
    except BaseException as error:
        # RLlib's half-built groups would call Ray when they are collected, and even start it again.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        try:
            undo()
        except Exception as another:  # only one error can be raised, and the first one says more
            warn(f"the set-up failed, and so did its clean-up: {type(another).__name__}: {another}")
        if isinstance(error, Exception) and find_actor_death(error):  # Ctrl-C stays Ctrl-C
            raise LostSetupError("a process died during the set-up") from error
        raise
