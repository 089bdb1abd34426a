"""Replicas that hang during start-up are killed; those that wait for resources are not."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle, serve

from cluster.ray_cluster.serve_watchdog import ReplicaStarts, ServeWatchdog, starting_replicas
from simulators.serving.app import start_serve

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Serve's replicas cannot import a test file
WAIT_S = 60.0


def test_a_replica_is_overdue_if_it_was_starting_at_every_poll_for_too_long():
    now = 0.0
    starts = ReplicaStarts(timeout_s=60.0, clock=lambda: now)
    polls = [
        (0.0, {"a", "b"}, []),
        (60.0, {"a", "b"}, []),  # not yet longer
        (61.0, {"a", "c"}, ["a"]),
        (62.0, {"a", "b", "c"}, []),  # b started or ended meanwhile: its time restarts; a is being killed
        (122.0, {"a", "b", "c"}, ["a", "c"]),
    ]
    for moment, names, expected in polls:
        now = moment
        assert starts.overdue(sorted(names)) == expected


class Answers:
    """Hangs at its start if this file does not exist yet."""

    def __init__(self, flag: str):
        with suppress(FileExistsError):
            Path(flag).touch(exist_ok=False)
            time.sleep(3600.0)

    def __call__(self) -> str:
        return "started"


def deploy(name: str, *, flag: Path, num_cpus: float) -> None:
    answers: Any = serve.deployment(Answers, ray_actor_options={"num_cpus": num_cpus})
    target = serve.RunTarget(answers.bind(str(flag)), name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


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
def test_a_replica_that_hangs_at_its_start_is_replaced(
    app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ServeWatchdog(["another", app], start_timeout_s=5.0, poll_interval_s=0.5)
    try:
        deploy(app, flag=tmp_path / "started", num_cpus=0.1)
        until(lambda: serve.status().applications[app].status == "RUNNING")
        assert starting_replicas([app]) == []
        assert serve.get_app_handle(app).remote().result(timeout_s=WAIT_S) == "started"
        assert capsys.readouterr().err.count("did not start in time") == 1
    finally:
        watch.close()


@pytest.mark.soak
@pytest.mark.slow
def test_a_replica_without_a_process_is_not_killed(app: str, tmp_path: Path) -> None:
    deploy("large", flag=tmp_path / "started", num_cpus=99.0)
    until(lambda: "STARTING" in serve.status().applications["large"].deployments["Answers"].replica_states)
    assert starting_replicas(["large"]) == []
    serve.delete("large")
