"""Replicas that hang before they answer are ended; those that wait for room are not."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle, serve

from cluster.ray_cluster.serve_watchdog import ReplicaStarts, ServeWatchdog, unborn
from simulators.serving.app import start_serve

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Serve's replicas cannot import a test file
WAIT_S = 60.0


def test_only_who_is_unborn_at_every_look_and_for_too_long_is_overdue():
    now = 0.0
    births = ReplicaStarts(patience_s=60.0, clock=lambda: now)
    looks = [
        (0.0, {"a", "b"}, []),
        (60.0, {"a", "b"}, []),  # not yet longer
        (61.0, {"a", "c"}, ["a"]),
        (62.0, {"a", "b", "c"}, []),  # b was born meanwhile, or gone: it begins anew; a is about to go
        (122.0, {"a", "b", "c"}, ["a", "c"]),
    ]
    for moment, names, expected in looks:
        now = moment
        assert births.overdue(sorted(names)) == expected


class Answers:
    """Hangs as it is born where this file is not there yet."""

    def __init__(self, born: str):
        with suppress(FileExistsError):
            Path(born).touch(exist_ok=False)
            time.sleep(3600.0)

    def __call__(self) -> str:
        return "born"


def deploy(name: str, *, born: Path, num_cpus: float) -> None:
    answers: Any = serve.deployment(Answers, ray_actor_options={"num_cpus": num_cpus})
    target = serve.RunTarget(answers.bind(str(born)), name=name, route_prefix=None)
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
def test_a_replica_that_hangs_at_its_birth_is_replaced_and_serve_goes_on(
    app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ServeWatchdog(["another", app], patience_s=5.0, look_every_s=0.5)
    try:
        deploy(app, born=tmp_path / "born", num_cpus=0.1)
        until(lambda: serve.status().applications[app].status == "RUNNING")
        assert unborn([app]) == []
        assert serve.get_app_handle(app).remote().result(timeout_s=WAIT_S) == "born"
        assert capsys.readouterr().err.count("has hung since its birth") == 1
    finally:
        watch.close()


@pytest.mark.soak
@pytest.mark.slow
def test_a_replica_without_a_process_is_nobodys_fault(app: str, tmp_path: Path) -> None:
    deploy("large", born=tmp_path / "born", num_cpus=99.0)
    until(lambda: "STARTING" in serve.status().applications["large"].deployments["Answers"].replica_states)
    assert unborn(["large"]) == []
    serve.delete("large")
