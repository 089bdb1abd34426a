"""Faults one after another, on a job and a cluster that are told what to do: when one strikes, when the
driver is started again, when it is over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.chaos import injector
from cluster.chaos.faults import Fault, FaultKind
from cluster.chaos.injector import MOST_RESTARTS, FaultInjector


class ToldJob:
    """Each of its lives ends as it is told to: with an exit code, or not before it is killed."""

    def __init__(self, log: Path, *ends: int | None):
        self.log = log
        self.num_lives = 0
        self.exit_code: int | None = None
        self.on_start: Callable[[], None] = lambda: None
        self._ends = list(ends)
        self.start()

    @property
    def pid(self) -> int:
        return 1000 + self.num_lives

    def start(self) -> None:
        self.num_lives += 1
        self.exit_code = self._ends.pop(0)
        with self.log.open("a") as log:
            log.write("simulators, buffer and 1 engine(s) are up\n")
        self.on_start()

    def kill(self) -> None:
        self.exit_code = -9


class ToldCluster:
    """Two replicas and a rollout actor; whoever is struck is replaced at once."""

    def __init__(self) -> None:
        self.pids = {"replica": {1, 2}, "rollout": {3}, "node": set[int]()}
        self.struck: list[int] = []
        self.on_strike: Callable[[], None] = lambda: None

    def alive(self) -> dict[str, frozenset[int]]:
        return {role: frozenset(pids) for role, pids in self.pids.items()}

    def bring_back_nodes(self) -> None:
        pass

    def strike(self, fault: Fault, *, victim: int) -> frozenset[int]:
        self.struck.append(victim)
        if not fault.is_hang:
            self.pids[fault.role].remove(victim)
        self.pids[fault.role].add(10 + len(self.struck))
        self.on_strike()
        return frozenset({victim})


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injector, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(injector, "MEND_TIMEOUT_S", 20.0)


def strikes_of(cluster: ToldCluster, job: ToldJob) -> FaultInjector:
    told: tuple[Any, Any] = (cluster, job)
    return FaultInjector(*told)


def fault(kind: FaultKind, *, pick: float = 0.0) -> Fault:
    return Fault(title=f"fault 1/9 {kind}", kind=kind, calm_s=0.0, pick=pick)


def test_a_driver_that_fails_after_the_last_fault_is_started_again(tmp_path: Path) -> None:
    job = ToldJob(tmp_path / "log", 1, 1, 0)
    assert strikes_of(ToldCluster(), job).wait_for_end()
    assert job.num_lives == 3


def test_a_driver_that_fails_again_and_again_is_left_to_lie(tmp_path: Path) -> None:
    job = ToldJob(tmp_path / "log", *[1] * 20)
    cluster = ToldCluster()
    strikes = strikes_of(cluster, job)
    assert not strikes.wait_for_end()
    assert job.num_lives == 1 + MOST_RESTARTS
    assert not strikes.strike(fault("rollout")) and not cluster.struck


def test_a_driver_that_has_just_failed_does_not_end_the_faults(tmp_path: Path) -> None:
    job = ToldJob(tmp_path / "log", 1, None, None)
    cluster = ToldCluster()
    strikes = strikes_of(cluster, job)
    assert strikes.strike(fault("rollout")) and cluster.struck == [3]
    job.on_start = lambda: cluster.pids.update(rollout={99})
    assert strikes.strike(fault("driver"))
    assert job.num_lives == 3 and [kind for kind, _ in strikes.recoveries] == ["rollout", "driver"]


def test_a_run_that_is_through_is_struck_no_more(tmp_path: Path) -> None:
    cluster = ToldCluster()
    strikes = strikes_of(cluster, ToldJob(tmp_path / "log", 0))
    assert not strikes.strike(fault("rollout")) and not cluster.struck and not strikes.recoveries


def test_a_kind_that_the_run_lacks_is_told_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injector, "MEND_TIMEOUT_S", 0.01)
    strikes = strikes_of(ToldCluster(), ToldJob(tmp_path / "log", None))
    assert strikes.strike(fault("engine")) and not strikes.recoveries
    assert "fault 1/9 engine: passed over" in capsys.readouterr().err


def test_who_watches_is_told_of_the_fault_the_step_and_the_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ToldJob(tmp_path / "log", None)
    with job.log.open("a") as log:
        log.write("step 12/60 | 4.2s | reward 0.41\n")
    assert strikes_of(ToldCluster(), job).strike(fault("rollout"))
    told = capsys.readouterr().err
    assert "fault 1/9 rollout: pid 3 | step 12/60" in told and "fault 1/9 rollout: mended after " in told


def test_one_that_hangs_is_not_counted_and_not_struck_again_while_it_is_let_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ToldCluster()
    strikes = strikes_of(cluster, ToldJob(tmp_path / "log", None))
    assert strikes.strike(fault("hung_replica"))
    assert cluster.struck == [1] and cluster.pids["replica"] == {1, 2, 11}, "still there"
    cluster.on_strike = lambda: cluster.pids["replica"].discard(1)
    assert strikes.strike(fault("replica"))
    assert cluster.struck == [1, 2]
    assert cluster.pids["replica"] == {11, 12}
    told = capsys.readouterr().err
    assert told.count(": mended after") == 2, "with two of them, not three"
