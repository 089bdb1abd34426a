"""Metrics endpoint of a run: with fakes of Ray's instruments, and scraped from a real Ray."""

import ipaddress
import json
import math
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

import cluster.tracking.prometheus
from cluster.console.progress import quiet_libraries
from cluster.evaluation.results import EvaluationRow
from cluster.ray_cluster.auth_token import provide_token
from cluster.ray_cluster.start import on_loopback
from cluster.tracking.metric_catalogue import EXPORTED
from cluster.tracking.prometheus import MetricsEndpoint
from tests.fakes import make_summary

STEP = {
    "rollout/reward/mean": 0.5,
    "rollout/reward/tau": 0.25,
    "rollout/policy_tokens": 100.0,
    "learner/num_skipped": 0.0,
    "learner/logprob_gap/mean": math.nan,
    "ledger/issued": 64.0,
    "unknown/metric": 1.0,
}
Seen = dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]
"""Values given to an instrument, by name and labels."""


class Instrument:
    """Fake of a Ray instrument."""

    seen: ClassVar[Seen] = {}

    def __init__(self, name: str, description: str, *, tag_keys: tuple[str, ...], **kwargs: Any):
        assert description
        self._name, self._tag_keys = name, tag_keys

    def _record(self, value: float, tags: Mapping[str, str]) -> None:
        assert set(tags) == set(self._tag_keys)
        self.seen[self._name, tuple(tags.items())].append(value)


class FakeGauge(Instrument):
    def set(self, value: float, tags: Mapping[str, str]) -> None:
        self._record(value, tags)


class FakeCounter(Instrument):
    def inc(self, value: float, tags: Mapping[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self._record(value, tags)


class FakeHistogram(Instrument):
    def observe(self, value: float, tags: Mapping[str, str]) -> None:
        self._record(value, tags)


NODES = [
    {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": 4002, "Alive": True},
    {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": 4001, "Alive": True},
    {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": -1, "Alive": True},
    {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": 4003, "Alive": False},
]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Values that reach the instruments, with a Ray of two endpoints."""
    monkeypatch.setattr(Instrument, "seen", defaultdict(list))
    for name, fake in (("Gauge", FakeGauge), ("Counter", FakeCounter), ("Histogram", FakeHistogram)):
        monkeypatch.setattr(cluster.tracking.prometheus, name, fake)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    yield Instrument.seen


def no_numbers() -> dict[str, float]:
    return {}


Make = Callable[..., MetricsEndpoint]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes endpoints that repeat gauges once an hour by default."""
    made: list[MetricsEndpoint] = []

    def one(
        *, live: Callable[[], Mapping[str, float]] = no_numbers, repeat_s: float = 3600.0
    ) -> MetricsEndpoint:
        made.append(
            MetricsEndpoint(run="mine", targets=tmp_path / "prometheus.json", live=live, repeat_s=repeat_s)
        )
        return made[-1]

    yield one
    for endpoint in made:
        endpoint.close()


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return (("run", "mine"), *given.items())


def wait_for(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_step_is_shown_under_the_catalogues_names(seen: Seen, make: Make) -> None:
    began = time.time()
    groups = [make_summary([1.0, 0.0], duration_s=2.0), make_summary([1.0, 0.0], duration_s=30.0)]
    endpoint = make()
    seen.clear()  # what counters begin with
    endpoint.note_step(7, STEP, groups)
    at = seen.pop(("userrl_time_last_step_at_seconds", labels()))
    assert began <= at[0] <= time.time()
    assert seen == {
        ("userrl_step", labels()): [7.0],
        ("userrl_steps", labels()): [1.0],
        ("userrl_rollout_reward_mean", labels()): [0.5],
        ("userrl_rollout_reward", labels(gym="tau")): [0.25],
        ("userrl_rollout_policy_tokens", labels()): [100.0],
        ("userrl_learner_num_skipped", labels()): [1e-300],
        ("userrl_ledger_issued", labels()): [64.0],
        ("userrl_rollout_group_duration_seconds", labels()): [2.0, 30.0],
    }


def test_counters_exist_before_the_first_step(seen: Seen, make: Make) -> None:
    make()
    counters = [one for one in EXPORTED if one.kind == "counter" and not one.labels]
    assert seen == {(one.name, labels()): [1e-300] for one in counters}
    assert any(one.key == "rollout/policy_tokens" for one in counters)


def test_gauges_are_repeated_during_a_step_and_counters_are_not(seen: Seen, make: Make) -> None:
    endpoint = make(repeat_s=0.005)
    endpoint.note_step(1, STEP, [])
    wait_for(lambda: len(seen["userrl_rollout_reward_mean", labels()]) >= 4)
    endpoint.close()
    assert seen["userrl_rollout_policy_tokens", labels()] == [1e-300, 100.0]
    num_set = len(seen["userrl_rollout_reward_mean", labels()])
    time.sleep(0.05)
    assert len(seen["userrl_rollout_reward_mean", labels()]) == num_set


def test_metrics_that_the_last_step_lacks_are_not_repeated(seen: Seen, make: Make) -> None:
    endpoint = make(repeat_s=0.005)
    endpoint.note_step(1, STEP, [])
    endpoint.note_step(2, {"rollout/reward/mean": 0.75}, [])
    num_set = len(seen["userrl_rollout_reward", labels(gym="tau")])
    wait_for(lambda: seen["userrl_rollout_reward_mean", labels()].count(0.75) >= 4)
    assert len(seen["userrl_rollout_reward", labels(gym="tau")]) == num_set


def test_live_values_replace_those_of_the_step(seen: Seen, make: Make) -> None:
    live = {"ledger/issued": 96.0, "ledger/dropped/flat": 3.0, "rollout/policy_tokens": 5.0}
    endpoint = make(live=lambda: live, repeat_s=0.005)
    endpoint.note_step(1, STEP, [])
    wait_for(lambda: seen["userrl_ledger_issued", labels()][-3:] == [96.0] * 3)
    assert set(seen["userrl_ledger_dropped", labels(reason="flat")]) == {3.0}
    assert seen["userrl_rollout_policy_tokens", labels()] == [1e-300, 100.0]


def test_a_failed_live_call_keeps_the_values_of_the_step(seen: Seen, make: Make) -> None:
    def lost() -> dict[str, float]:
        raise RuntimeError("the buffer has died")

    endpoint = make(live=lost, repeat_s=0.005)
    endpoint.note_step(1, STEP, [])
    wait_for(lambda: len(seen["userrl_ledger_issued", labels()]) >= 4)
    assert set(seen["userrl_ledger_issued", labels()]) == {64.0}


def test_scores_stay_until_the_next_evaluation(seen: Seen, make: Make) -> None:
    row = partial(
        EvaluationRow,
        policy="grpo",
        simulator="rules",
        num_tasks=4,
        n=4,
        num_failed=0,
        low=0.0,
        high=1.0,
        turns=3.0,
    )
    endpoint = make(repeat_s=0.005)
    endpoint.note_scores(
        [
            row(stage="sft", gym="tau", score=0.25),
            row(stage="sft", gym="turtle", score=math.nan),
            row(stage="validation-00002", gym="tau", score=0.5, split="validation"),
        ]
    )
    endpoint.note_step(1, STEP, [])
    wait_for(lambda: len(seen["userrl_evaluation_score", labels(gym="tau")]) >= 4)
    assert set(seen["userrl_evaluation_score", labels(gym="tau")]) == {0.25}
    assert seen["userrl_validation_score", labels(gym="tau")][0] == 0.5
    assert ("userrl_evaluation_score", labels(gym="turtle")) not in seen


def test_a_file_has_the_addresses_to_scrape_while_the_run_is_active(
    seen: Seen, make: Make, tmp_path: Path
) -> None:
    endpoint, targets = make(), tmp_path / "prometheus.json"
    wait_for(targets.exists)
    assert json.loads(targets.read_text()) == [
        {"labels": {"job": "ray"}, "targets": ["127.0.0.1:4001", "127.0.0.1:4002"]}
    ]
    endpoint.close()
    assert not targets.exists()


def test_an_unwritable_file_does_not_stop_the_export(seen: Seen, tmp_path: Path) -> None:
    endpoint = MetricsEndpoint(
        run="mine", targets=tmp_path / "no folder" / "prometheus.json", live=no_numbers, repeat_s=0.005
    )
    endpoint.note_step(1, STEP, [])
    wait_for(lambda: len(seen["userrl_step", labels()]) >= 4)
    endpoint.close()


def scrape(targets: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of this project at all endpoints, by name and by this project's labels."""
    ours = {label for one in EXPORTED for label in one.labels} | {"run", "le"}
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for target in json.loads(targets.read_text())[0]["targets"]:
        host, _, _ = target.rpartition(":")
        assert ipaddress.ip_address(host).is_loopback
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                if one.name.startswith("ray_userrl_"):
                    mine = {name: value for name, value in one.labels.items() if name in ours}
                    found[one.name, tuple(sorted(mine.items()))] = one.value
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_real_ray_serves_the_metrics_of_a_step_on_loopback(tmp_path: Path) -> None:
    quiet_libraries()
    provide_token()
    with on_loopback():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            num_cpus=1,
            _system_config={"metrics_report_interval_ms": 1000},
        )
    targets = tmp_path / "prometheus.json"
    endpoint = MetricsEndpoint(
        run="mine", targets=targets, live=lambda: {"buffer/groups_ready": 3.0}, repeat_s=0.5
    )
    mine = (("run", "mine"),)
    try:
        endpoint.note_step(7, STEP, [make_summary([1.0, 0.0], duration_s=3.0)])
        deadline = time.monotonic() + 60.0
        while not targets.exists() or len(scrape(targets)) < 9:
            assert time.monotonic() < deadline, scrape(targets) if targets.exists() else "no endpoint"
            time.sleep(0.5)
        time.sleep(6.0)  # several intervals of Ray's without a step
        found = scrape(targets)
        assert found["ray_userrl_step", mine] == 7.0
        assert found["ray_userrl_rollout_reward_mean", mine] == 0.5
        assert found["ray_userrl_rollout_reward", (("gym", "tau"), *mine)] == 0.25
        assert found["ray_userrl_ledger_issued", mine] == 64.0
        assert found["ray_userrl_buffer_groups_ready", mine] == 3.0
        assert found["ray_userrl_rollout_policy_tokens_total", mine] == 100.0
        assert found["ray_userrl_learner_num_skipped_total", mine] == pytest.approx(0.0)
        duration = "ray_userrl_rollout_group_duration_seconds"
        assert found[f"{duration}_count", mine] == 1.0
        assert found[f"{duration}_bucket", (("le", "5.0"), *mine)] == 1.0
        assert found[f"{duration}_bucket", (("le", "2.0"), *mine)] == 0.0
        assert "ray_userrl_learner_logprob_gap_mean" not in {name for name, _ in found}
    finally:
        endpoint.close()
        ray.shutdown()
