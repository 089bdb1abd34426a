"""Replicas that hang before they answer are ended; those that wait for room are not."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from os import kill
from typing import Any

import pytest
import ray
from ray import cloudpickle, serve
from ray._private.state import state

from cluster.replica_watch import Births, ReplicaWatch, unborn
from simulators.serve import start_serve

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Serve's replicas cannot import a test file
WAIT_S = 60.0


def test_only_who_is_unborn_at_every_look_and_for_too_long_is_overdue():
    now = 0.0
    births = Births(patience_s=60.0, clock=lambda: now)
    looks = [
        (0.0, {"a", "b"}, []),
        (60.0, {"a", "b"}, []),  # not yet longer
        (61.0, {"a", "c"}, ["a"]),
        (62.0, {"a", "b", "c"}, ["a"]),  # b was born meanwhile, or gone: it begins anew
        (122.0, {"b", "c"}, ["c"]),
    ]
    for moment, names, expected in looks:
        now = moment
        assert births.overdue(sorted(names)) == expected


class Answers:
    def __init__(self, delay_s: float):
        time.sleep(delay_s)

    def __call__(self) -> str:
        return "born"


def answers(*, num_cpus: float) -> Any:
    return serve.deployment(Answers, ray_actor_options={"num_cpus": num_cpus})


@pytest.fixture(scope="module")
def app() -> Iterator[str]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    start_serve(host="127.0.0.1", port=18471, location="NoServer")
    yield "users"
    serve.shutdown()
    ray.shutdown()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_replica_that_hangs_at_its_birth_is_replaced_and_serve_goes_on(app: str) -> None:
    watch = ReplicaWatch(app, patience_s=2.0, look_every_s=0.2)
    try:
        target = answers(num_cpus=0.1).bind(1.0)
        serve.run_many(
            [serve.RunTarget(target, name=app, route_prefix=None)], wait_for_applications_running=False
        )
        until(lambda: unborn(app))
        (hung,) = unborn(app)
        (pid,) = [
            one["Pid"] for one in state.actor_table(None, None, "ALIVE").values() if one["Name"] == hung
        ]
        kill(pid, signal.SIGSTOP)
        until(lambda: serve.status().applications[app].status == "RUNNING")
        assert unborn(app) == []
        assert serve.get_app_handle(app).remote().result(timeout_s=WAIT_S) == "born"
    finally:
        watch.close()


@pytest.mark.slow
def test_a_replica_without_a_process_is_nobodys_fault(app: str) -> None:
    target = answers(num_cpus=99.0).bind(0.0)
    serve.run_many(
        [serve.RunTarget(target, name="large", route_prefix=None)],
        wait_for_applications_running=False,
        wait_for_ingress_deployment_creation=True,
    )
    until(lambda: "Answers" in serve.status().applications["large"].deployments)
    assert unborn("large") == []
    serve.delete("large")
