"""`userrl scale` and the driver's autoscaler, which communicate through the run folder."""

import json
import threading
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.run_folder.paths import RunFolder
from cluster.workers.autoscaler import PATIENCE_STEPS, Autoscaler, ProcessCounts, request_counts
from tests.cluster.workers.test_scaling_rules import metrics


class Driver:
    """Records the changes that the autoscaler makes."""

    def __init__(self, config: RunConfig, folder: RunFolder):
        self.changes: list[tuple[str, int]] = []
        self.autoscaler = Autoscaler(
            config,
            folder,
            scale={
                "rollouts": lambda number: self.changes.append(("rollouts", number)),
                "engines": lambda number: self.changes.append(("engines", number)),
                "simulators": self._refuse,
            },
        )

    def _refuse(self, number: int) -> None:
        raise ValueError("Serve did not scale the simulators")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    config = RunConfig.model_validate(
        {"rollout": {"num_actors": 2, "max_actors": 4}, "buffer": {"max_off_policy_steps": 1}}
    )
    RunFolder.of(config).create(config)
    return config


def asked(driver: Driver, folder: RunFolder, **wanted: int) -> str:
    """The answer to a request while the driver polls."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(0.01):
            driver.autoscaler.poll()

    polling = threading.Thread(target=poll)
    with folder.locked():
        polling.start()
        try:
            return request_counts(folder, wanted=wanted, timeout_s=20.0)
        finally:
            stop.set()
            polling.join()


def test_the_driver_carries_out_a_request_and_answers_in_one_line(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    driver = Driver(config, folder)
    line = asked(driver, folder, rollouts=16, engines=2)
    assert driver.changes == [("rollouts", 16), ("engines", 2)]
    assert line.startswith("run: 16 rollout actors, 2 engines, 1 simulator replicas (before: 2 rollout")
    driver.autoscaler.poll()
    assert len(driver.changes) == 2, "a request is carried out once"
    asked(driver, folder, engines=1)
    assert driver.changes[2:] == [("engines", 1)]


def test_a_change_that_fails_is_reported_and_ends_nothing(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    driver = Driver(config, folder)
    assert "nothing changed: Serve did not scale" in asked(driver, folder, simulators=3)
    assert driver.autoscaler.counts.simulators == 1


def test_a_resumed_driver_keeps_the_requested_counts(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    asked(Driver(config, folder), folder, rollouts=3)
    asked(Driver(config, folder), folder, engines=2)
    resumed = Driver(config, folder)
    resumed.autoscaler.poll()
    assert resumed.autoscaler.counts == ProcessCounts(rollouts=3, engines=2, simulators=1)


def test_a_run_adapts_only_once_its_last_change_has_taken_effect(config: RunConfig) -> None:
    driver = Driver(config, RunFolder.of(config))
    step = metrics(learner=0.5, engine=0.5, requests=1)
    for _ in range(PATIENCE_STEPS):
        driver.autoscaler.adapt(step, is_stable=False)
    assert driver.changes == []
    for _ in range(PATIENCE_STEPS):
        driver.autoscaler.adapt(step, is_stable=True)
    assert driver.changes == [("rollouts", 3)]


def test_a_file_that_is_no_request_changes_nothing(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    driver = Driver(config, folder)
    for text in (
        "",
        "[]",
        "{",
        json.dumps({"rollouts": 7}),
        json.dumps({"request": "a", "rollouts": "many"}),
    ):
        folder.scale.write_text(text)
        driver.autoscaler.poll()
    assert driver.changes == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run"], "nothing to change: give --rollouts N"),
        (["run", "--rollouts", "0"], "--rollouts 0: a run has at least one of each"),
        (["run", "--engines", "2"], "no driver runs there: start it with `userrl train runs/run`"),
        (["nowhere", "--engines", "2"], "nowhere: no run there"),
    ],
)
def test_an_invalid_request_is_refused_in_one_line(
    words: list[str], says: str, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_request_to_a_busy_driver_times_out(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    with folder.locked():
        assert "the driver is busy" in request_counts(folder, wanted={"rollouts": 3}, timeout_s=0.0)
    with pytest.raises(BadInput):
        request_counts(folder, wanted={"rollouts": 3}, timeout_s=0.0)
