"""`userrl scale` and the driver that it speaks to, through the run folder."""

import json
import threading
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.run_folder.paths import RunFolder
from cluster.workers.autoscaler import Autoscaler, ask_for_sizes
from cluster.workers.scaling_rules import PATIENCE_STEPS, ProcessCounts
from tests.cluster.workers.test_scaling_rules import metrics


class Driver:
    """Notes what it is told to change, and looks for requests until it is stopped."""

    def __init__(self, config: RunConfig, folder: RunFolder):
        self.told: list[tuple[str, int]] = []
        self.scaling = Autoscaler(
            config,
            folder,
            set_sizes={
                "rollouts": lambda number: self.told.append(("rollouts", number)),
                "engines": lambda number: self.told.append(("engines", number)),
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
    """The answer to a request, while the driver looks now and then."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            driver.scaling.look()

    looking = threading.Thread(target=look)
    with folder.locked():
        looking.start()
        try:
            return ask_for_sizes(folder, wanted=wanted, timeout_s=20.0)
        finally:
            stop.set()
            looking.join()


def test_the_driver_changes_what_was_asked_for_and_answers_in_one_line(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    driver = Driver(config, folder)
    line = asked(driver, folder, rollouts=16, engines=2)
    assert driver.told == [("rollouts", 16), ("engines", 2)]
    assert line.startswith("run: 16 rollout actors, 2 engines, 1 simulator replicas (before: 2 rollout")
    driver.scaling.look()
    assert len(driver.told) == 2, "a request is done once"
    asked(driver, folder, engines=1)
    assert driver.told[2:] == [("engines", 1)]


def test_what_cannot_be_changed_is_told_and_ends_nothing(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    driver = Driver(config, folder)
    assert "nothing changed: Serve did not scale" in asked(driver, folder, simulators=3)
    assert driver.scaling.now.simulators == 1


def test_a_driver_that_goes_on_has_the_sizes_it_had(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    asked(Driver(config, folder), folder, rollouts=3)
    asked(Driver(config, folder), folder, engines=2)
    later = Driver(config, folder)
    later.scaling.look()
    assert later.scaling.now == ProcessCounts(rollouts=3, engines=2, simulators=1)


def test_a_run_grows_by_need_only_once_its_last_change_has_arrived(config: RunConfig) -> None:
    driver = Driver(config, RunFolder.of(config))
    step = metrics(learner=0.5, engine=0.5, requests=1)
    for _ in range(PATIENCE_STEPS):
        driver.scaling.note(step, is_settled=False)
    assert driver.told == []
    for _ in range(PATIENCE_STEPS):
        driver.scaling.note(step, is_settled=True)
    assert driver.told == [("rollouts", 3)]


def test_a_file_that_is_nobodys_request_changes_nothing(config: RunConfig) -> None:
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
        driver.scaling.look()
    assert driver.told == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run"], "nothing to change: give --rollouts N"),
        (["run", "--rollouts", "0"], "--rollouts 0: a run has at least one of each"),
        (["run", "--engines", "2"], "no driver runs there: start it with `userrl train runs/run`"),
        (["nowhere", "--engines", "2"], "nowhere: no run there"),
    ],
)
def test_a_request_that_cannot_be_is_one_line(
    words: list[str], says: str, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_driver_that_does_not_look_is_no_reason_to_wait_for_ever(config: RunConfig) -> None:
    folder = RunFolder.of(config)
    with folder.locked():
        assert "the driver is busy" in ask_for_sizes(folder, wanted={"rollouts": 3}, timeout_s=0.0)
    with pytest.raises(BadInput):
        ask_for_sizes(folder, wanted={"rollouts": 3}, timeout_s=0.0)
