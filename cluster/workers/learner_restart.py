"""New learners in place of lost ones: whether the cluster has room for them, and no endless wait where it has
not."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.workers.learner_rpc import GO_ON, LearnerError, as_failure
from cluster.workers.restart import find_actor_death

ROOM_TIMEOUT_S = 60.0
"""Wait for CPUs and GPUs: those of a killed process come free within a second, a node takes longer."""
LOOK_EVERY_S = 0.1
ROUNDING = 1e-3
"""Of sums of the fractions that Ray counts in, which are of 1e-4."""


def rebuilt(group: Any, *, why: str, timeout_s: float) -> Any:
    """RLlib's LearnerGroup once more, its learners new. Raises `LearnerError` where they find no place, or do
    not start in `timeout_s`; as `learner_calls.as_failure` does where they start and fail."""
    needed = _needed(group.config)
    # The place of a Tune trial is reserved, and does not count as free.
    if ray.util.get_current_placement_group() is None:
        _wait_for_room(needed, why=why, timeout_s=ROOM_TIMEOUT_S)
    args, kwargs = group.get_ctor_args_and_kwargs()
    try:
        return _in_time(lambda: type(group)(*args, **kwargs), timeout_s=timeout_s)
    except TimeoutError:
        raise LearnerError(
            f"{why}: new ones, which take {_in_words(needed)}, did not start within {timeout_s:.0f} s: "
            f"{GO_ON}"
        ) from None
    except Exception as error:
        failure = error if isinstance(error, RayError) else find_actor_death(error)
        if failure is None:
            raise
        raise as_failure({0: failure}, timeout_s=timeout_s) from error


def _needed(config: Any) -> dict[str, float]:
    """What all learners take together. `auto` is RLlib's own word for a CPU where there is no GPU."""
    num_gpus, num_cpus = config.num_gpus_per_learner, config.num_cpus_per_learner
    per_learner = {"CPU": float(num_gpus == 0) if num_cpus == "auto" else num_cpus, "GPU": num_gpus}
    per_learner |= config.custom_resources_per_learner or {}
    return {name: config.num_learners * count for name, count in per_learner.items() if count}


def _wait_for_room(needed: Mapping[str, float], *, why: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) + ROUNDING >= count for name, count in needed.items()):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_EVERY_S)
    there = {name: free.get(name, 0.0) for name in needed}
    raise LearnerError(
        f"{why}: new ones take {_in_words(needed)}, and for {timeout_s:.0f} s the cluster has had "
        f"{_in_words(there)} free: bring back what is gone or give fewer learner.num_learners, and {GO_ON}"
    )


def _in_words(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{count:g} {name}" for name, count in amounts.items()) or "nothing"


def _in_time(build: Callable[[], Any], *, timeout_s: float) -> Any:
    """`build()` in a thread, since RLlib waits for its actors without a limit. Raises TimeoutError; then the
    thread ends with the process."""
    result: Future[Any] = Future()

    def work() -> None:
        try:
            result.set_result(build())
        except Exception as error:  # raised again by `result`, in the thread that asked
            result.set_exception(error)

    Thread(target=work, daemon=True).start()
    return result.result(timeout=timeout_s)
