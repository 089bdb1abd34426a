"""A run continues after the death of an engine, of its core and of a learner, and while its sizes change:
real processes."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.driver.algorithm import GRPO
from cluster.workers.autoscaler import request_counts
from cluster.workers.restart import run_with_restarts
from tests.cluster.driver.test_algorithm import (
    assert_promises_hold,
    assert_replaced,
    engine_processes,
    tiny_config,
)

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(600)]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def algorithm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GRPO]:
    config = tiny_config(tmp_path_factory.mktemp("runs"), name="struck", max_off_policy_steps=1)
    algorithm = config.build_algo()
    assert isinstance(algorithm, GRPO)
    yield algorithm
    algorithm.stop()


def test_steps_continue_after_the_only_engines_actor_was_killed(algorithm: GRPO) -> None:
    algorithm.train()
    killed = engine_processes(algorithm)
    os.kill(killed[0], signal.SIGKILL)
    algorithm.train()
    algorithm.train()
    assert_promises_hold(algorithm.step_metrics, most_age=1)
    assert_replaced(killed, algorithm)


def test_sizes_change_while_the_run_goes_on_and_the_ledger_closes(algorithm: GRPO) -> None:
    def train_until_stable() -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            algorithm.train()
            assert_promises_hold(algorithm.step_metrics, most_age=1)
            assert time.monotonic() < deadline
            if algorithm.parts.is_stable:
                return

    for sizes in ({"rollouts": 2, "engines": 2, "simulators": 2}, {"rollouts": 1, "engines": 1}):
        with algorithm.folder.locked():
            request_counts(algorithm.folder, wanted=sizes, timeout_s=0.0)
        train_until_stable()
        assert algorithm.parts.rollouts.membership.num_active == sizes["rollouts"]
        assert algorithm.parts.services.engines.num_serving == sizes["engines"]


def test_a_learner_that_dies_during_set_up_restarts_the_run(tmp_path: Path) -> None:
    config, began = tiny_config(tmp_path, name="begun", max_off_policy_steps=1), time.time()
    killed, built = list[int](), list[GRPO]()

    def kill_first_learner() -> None:
        deadline = time.monotonic() + WAIT_S
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if any("_WrappedExecutable" in word for word in process.cmdline()) and not killed:
                        process.kill()
                        killed.append(process.pid)

    def build() -> None:
        algorithm = config.build_algo()
        assert isinstance(algorithm, GRPO)
        built.append(algorithm)

    killer = threading.Thread(target=kill_first_learner)
    killer.start()
    run_with_restarts(build, place=lambda: "the beginning")
    killer.join()
    try:
        assert killed and len(built) == 1
        built[0].train()
        assert built[0].policy_version == 1
        cores = [one for one in psutil.process_iter() if one.name().startswith("VLLM::Engine")]
        new = [one for one in cores if one.create_time() > began]
        assert len(new) == 1, "the engine that was still starting leaves no process behind"
    finally:
        built[0].stop()
