"""Rebuilds RLlib's LearnerGroup after a failure: waits at most 60 s for free CPUs and GPUs, then constructs
it with a timeout."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.workers.learner_rpc import RESUME, LearnerError, as_failure
from cluster.workers.restart import find_actor_death

RESOURCE_TIMEOUT_S = 60.0
"""A killed process frees its CPUs and GPUs within a second; a new node takes longer."""
POLL_EVERY_S = 0.1
ROUNDING = 1e-3
"""Ray counts resources in steps of 1e-4: tolerance of their sums."""


def rebuild(group: Any, *, reason: str, timeout_s: float) -> Any:
    """A new LearnerGroup of the same configuration. Raises `LearnerError` if the cluster has no room for it
    or it does not start within `timeout_s`; as `learner_rpc.as_failure` if a learner fails while it
    starts."""
    needed = _needed(group.config)
    # Resources that a Tune trial has reserved do not count as free.
    if ray.util.get_current_placement_group() is None:
        _wait_for_resources(needed, reason=reason, timeout_s=RESOURCE_TIMEOUT_S)
    args, kwargs = group.get_ctor_args_and_kwargs()
    try:
        return _with_timeout(lambda: type(group)(*args, **kwargs), timeout_s=timeout_s)
    except TimeoutError:
        raise LearnerError(
            f"{reason}: new learners, which need {_in_words(needed)}, did not start within "
            f"{timeout_s:.0f} s: {RESUME}"
        ) from None
    except Exception as error:
        failure = error if isinstance(error, RayError) else find_actor_death(error)
        if failure is None:
            raise
        raise as_failure({0: failure}, timeout_s=timeout_s) from error


def _needed(config: Any) -> dict[str, float]:
    """Resources of all learners together. RLlib's `auto` is one CPU if there is no GPU."""
    num_gpus, num_cpus = config.num_gpus_per_learner, config.num_cpus_per_learner
    per_learner = {"CPU": float(num_gpus == 0) if num_cpus == "auto" else num_cpus, "GPU": num_gpus}
    per_learner |= config.custom_resources_per_learner or {}
    return {name: config.num_learners * count for name, count in per_learner.items() if count}


def _wait_for_resources(needed: Mapping[str, float], *, reason: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) + ROUNDING >= count for name, count in needed.items()):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_EVERY_S)
    raise LearnerError(
        f"{reason}: new learners need {_in_words(needed)}, and for {timeout_s:.0f} s the cluster has had "
        f"{_in_words({name: free.get(name, 0.0) for name in needed})} free: bring back lost nodes or lower "
        f"learner.num_learners, and {RESUME}"
    )


def _in_words(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{count:g} {name}" for name, count in amounts.items()) or "nothing"


def _with_timeout(build: Callable[[], Any], *, timeout_s: float) -> Any:
    """`build()` in a thread, since RLlib waits for its actors without a limit. Raises TimeoutError; the
    thread then ends with the process."""
    result: Future[Any] = Future()

    def work() -> None:
        try:
            result.set_result(build())
        except Exception as error:  # raised again by `result` in the calling thread
            result.set_exception(error)

    Thread(target=work, daemon=True).start()
    return result.result(timeout=timeout_s)
