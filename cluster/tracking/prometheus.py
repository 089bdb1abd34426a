"""Export of a run's metrics to Ray's Prometheus endpoints (docs/metrics.md), under the names of
`metric_catalogue`.

Ray's agent on each node serves what its processes report, with or without a dashboard. A gauge that is not
set for two report intervals (20 s) disappears, so that a dead process leaves none; a thread of the driver
therefore repeats all gauges during long steps. Failures are retried and never stop a run."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from actors.trajectory import GroupSummary
from cluster.evaluation.results import EvaluationRow
from cluster.run_folder.atomic_files import write_whole
from cluster.tracking.metric_catalogue import DURATION, EXPORTED, SCORES, STEP, STEP_AT, STEPS, Metric, find

REPEAT_S = 5.0
"""Interval between two settings of all gauges: half of Ray's `metrics_report_interval_ms`."""
CLOSE_TIMEOUT_S = 5.0
DURATIONS_S = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0]
"""Upper bounds of the histogram's buckets."""
ALMOST_ZERO = 1e-300
"""Initial amount of a counter: Ray ignores 0, and a series that Prometheus first sees at 1 has no
increase."""
SeriesKey = tuple[Metric, tuple[str, ...]]
"""A time series: metric and label values."""


class MetricsEndpoint:
    """The time series of one run. Create it after Ray has started; `close` it before Ray shuts down."""

    def __init__(
        self, *, run: str, targets: Path, live: Callable[[], Mapping[str, float]], repeat_s: float = REPEAT_S
    ):
        """`run` is the label that distinguishes runs. `targets` is a file with the addresses of the
        endpoints, for Prometheus. `live` returns current values and is called in a background thread."""
        self._run = run
        self._targets = targets
        self._live = live
        self._repeat_s = repeat_s
        self._instruments: dict[Metric, Gauge | Counter | Histogram] = {}
        self._gauges: dict[SeriesKey, float] = {}
        """Values of the last step."""
        self._scores: dict[SeriesKey, float] = {}
        self._is_closed = threading.Event()
        self._lock = threading.Lock()
        for metric in EXPORTED:
            if metric.kind == "counter" and not metric.labels:
                self._count(metric, (), 0.0)
        self._thread = threading.Thread(target=self._repeat, name="metrics", daemon=True)
        self._thread.start()

    def note_step(self, step: int, metrics: Mapping[str, float], groups: Sequence[GroupSummary]) -> None:
        """Exports a step's metrics, by the keys of metrics.jsonl, and the durations of the groups resolved
        since the previous step."""
        gauges: dict[SeriesKey, float] = {(STEP, ()): float(step), (STEP_AT, ()): time.time()}
        with self._lock:
            self._count(STEPS, (), 1.0)
            for (metric, labels), value in _series(metrics).items():
                if metric.kind == "counter":
                    self._count(metric, labels, value)
                else:
                    gauges[metric, labels] = value
            for group in groups:
                self._observe(DURATION, group.duration_s)
            self._gauges = gauges
            self._set(gauges)

    def note_scores(self, rows: Iterable[EvaluationRow]) -> None:
        """Exports the scores of an evaluation, which stay until the next one."""
        scores = {
            (SCORES[row.split], (row.gym,)): row.score
            for row in rows
            if row.split in SCORES and math.isfinite(row.score)
        }
        with self._lock:
            self._scores |= scores
            self._set(scores)

    def close(self) -> None:
        """Stops the export and deletes the file; the gauges disappear within 20 s."""
        self._is_closed.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        with suppress(OSError):
            self._targets.unlink(missing_ok=True)

    def _repeat(self) -> None:
        """Consumes the values of `live`, waits for the next interval, produces gauges."""
        known: list[str] = []
        while True:
            # Ray's calls may fail while a node dies or the run ends.
            with suppress(Exception):
                live = self._live_gauges()
                with self._lock:
                    if self._is_closed.is_set():
                        return
                    self._set(self._gauges | self._scores | live)
            with suppress(Exception):
                # A call to Ray after its shutdown would start it again.
                if ray.is_initialized() and (targets := endpoints()) != known:
                    write_whole(self._targets, json.dumps([{"labels": {"job": "ray"}, "targets": targets}]))
                    known = targets
            if self._is_closed.wait(self._repeat_s):
                return

    def _live_gauges(self) -> dict[SeriesKey, float]:
        """The gauges among the current values; empty if the call fails, so that the step's stay."""
        if not ray.is_initialized():
            return {}
        try:
            numbers = self._live()
        except Exception:
            return {}
        return {series: value for series, value in _series(numbers).items() if series[0].kind == "gauge"}

    def _set(self, gauges: Mapping[SeriesKey, float]) -> None:
        for (metric, labels), value in gauges.items():
            gauge = self._instrument(metric)
            assert isinstance(gauge, Gauge)
            gauge.set(value, tags=self._tags(metric, labels))

    def _count(self, metric: Metric, labels: tuple[str, ...], amount: float) -> None:
        counter = self._instrument(metric)
        assert isinstance(counter, Counter)
        counter.inc(max(amount, ALMOST_ZERO), tags=self._tags(metric, labels))

    def _observe(self, metric: Metric, value: float) -> None:
        histogram = self._instrument(metric)
        assert isinstance(histogram, Histogram)
        histogram.observe(value, tags=self._tags(metric, ()))

    def _tags(self, metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
        return {"run": self._run, **dict(zip(metric.labels, labels, strict=True))}

    def _instrument(self, metric: Metric) -> Gauge | Counter | Histogram:
        if metric not in self._instruments:
            self._instruments[metric] = _make(metric)
        return self._instruments[metric]


def _series(numbers: Mapping[str, float]) -> dict[SeriesKey, float]:
    """Finite values by series. Others are left out, so that their gauge disappears."""
    found = ((find(key), value) for key, value in numbers.items() if math.isfinite(value))
    return {(one[0], tuple(one[1].values())): value for one, value in found if one is not None}


def _make(metric: Metric) -> Gauge | Counter | Histogram:
    unit = f" [{metric.unit}]" if metric.unit else ""
    description, labels = f"{metric.meaning}{unit}", ("run", *metric.labels)
    if metric.kind == "histogram":
        return Histogram(metric.name, description, boundaries=DURATIONS_S, tag_keys=labels)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, description, tag_keys=labels)


def endpoints() -> list[str]:
    """`host:port` of the metrics endpoint of every living node. If Ray was started on this machine they are
    on 127.0.0.1, like its other ports: cluster/ray_cluster/start.py."""
    return sorted(
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"] > 0  # -1 if its agent has no metrics
    )
