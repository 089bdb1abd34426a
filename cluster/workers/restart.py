"""A run that begins anew with all its processes, where those that it has cannot go on."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError

from cluster.console.progress import warn

MAX_RESTARTS = 5
"""From the same place, after which it is no mishap."""


class RestartError(RuntimeError):
    """Processes are lost that the others cannot do without; the run can go on with new ones."""


class RestartsExhaustedError(RuntimeError):
    """New starts have come no further."""


class LostBufferError(RestartError):
    """The buffer has died, and with it the tables that it owned."""


class LostSetupError(RestartError):
    """A process has died before all were there."""


def run_with_restarts(work: Callable[[], object], *, place: Callable[[], str]) -> None:
    """Does `work` again each time that it wants a new start; `place` says where it goes on from. Raises
    `RestartsExhaustedError` where that is the same place again and again."""
    places: list[str] = []
    while True:
        try:
            work()
        except RestartError as error:
            places.append(place())
            if places.count(places[-1]) > MAX_RESTARTS:
                raise RestartsExhaustedError(
                    f"{error}: {MAX_RESTARTS} new starts have come no further than {places[-1]}: "
                    "`userrl train RUN_FOLDER` goes on once it is known why"
                ) from error
            warn(f"{error}: the run goes on from {places[-1]} with new processes")
        else:
            return


def find_actor_death(error: BaseException | None) -> RayActorError | None:
    """The death of an actor that has led to this error, if one has. Ray Train, which starts RLlib's learners,
    turns one into a TypeError of its own. An actor that cannot begin has not died."""
    while error is not None:
        if isinstance(error, RayActorError):
            return None if error.actor_init_failed else error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def cleanup_on_failure(undo: Callable[[], object]) -> Iterator[None]:
    """Around a set-up: where it fails, what it has started is ended by `undo`. Raises `LostSetupError` where
    it failed since a process has died, by which no fault of the recipe is meant."""
    try:
        yield
    except BaseException as error:
        # RLlib's half-built groups would ask for Ray when they are collected, and start it again if need be.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        try:
            undo()
        except Exception as another:  # what comes now has room for one of them, and the first one says more
            warn(f"the set-up failed, and so did its end: {type(another).__name__}: {another}")
        if isinstance(error, Exception) and find_actor_death(error):  # Ctrl-C stays Ctrl-C
            raise LostSetupError("a process has died in the set-up") from error
        raise
