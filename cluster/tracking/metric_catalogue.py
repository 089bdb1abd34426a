"""Catalogue of all metrics of a run: key in metrics.jsonl, section, unit, description, and Prometheus name.
Documentation, dashboards and trackers are made from this list, which is read from metrics.toml.

Imports nothing of the project. `tests/cluster/tracking/test_metric_catalogue.py` checks the list against the
code.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast, get_args

MetricSection = Literal["train", "rollout", "users", "time", "ledger", "eval"]
SECTIONS: tuple[MetricSection, ...] = get_args(MetricSection)
MetricKind = Literal["gauge", "counter", "histogram"]
"""gauge: a state, a mean, or a running total. counter: an amount of one step, which the endpoint sums up.
histogram: single values, which the endpoint counts by size."""
PREFIX = "ray_userrl_"
"""Prefix of every name at the endpoint. Ray adds `ray_`, and `_total` to counters."""
WORDS = {"tokens_per_s": "tokens_per_second", "num_bytes": "bytes"}
"""Parts of a key with another spelling in Prometheus."""
ENDINGS = {"s": "seconds", "share": "ratio"}
"""Suffix of a name, by unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric, or one per gym, simulator or reason."""

    key: str
    """`room/thing/stat`; a part in braces stands for any name, and is a label at the endpoint."""
    section: MetricSection
    unit: str = ""
    """Empty for a dimensionless number."""
    meaning: str
    kind: MetricKind = "gauge"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the parts in braces, in order. Each has few values: gyms, simulators, reasons."""
        return tuple(re.findall(r"{(\w+)}", self.key))

    @property
    def name(self) -> str:
        """Name in `ray.util.metrics`: `userrl_...` and, by the rules of Prometheus, the unit at the end."""
        words = [WORDS.get(word, word) for word in self.key.split("/") if not word.startswith("{")]
        ending = ENDINGS.get(self.unit)
        if ending:
            pattern = {"seconds": r"_s$", "ratio": r"_?(share|fraction)$"}[ending]
            words = [*(kept for word in words if (kept := re.sub(pattern, "", word))), ending]
        return "_".join(["userrl", *words])

    @property
    def series(self) -> str:
        """Name at the endpoint. Example: `time/wait_s` is `ray_userrl_time_wait_seconds`."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"

    def labels_of(self, key: str) -> dict[str, str] | None:
        """Label values of a key of this metric; None if it is a key of another metric."""
        found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", self.key), key)
        return found.groupdict() if found else None


def _catalogue() -> Iterator[Metric]:
    sections = tomllib.loads((Path(__file__).parent / "metrics.toml").read_text(encoding="utf-8"))
    for section, rows in sections.items():
        for key, row in rows.items():
            yield Metric(key=key, section=cast(MetricSection, section), **row)


CATALOGUE: tuple[Metric, ...] = tuple(_catalogue())
"""Keys of metrics.jsonl other than `step`."""

STEP = Metric(key="step", section="train", unit="", meaning="Optimizer steps of GRPO so far")
STEP_AT = Metric(
    key="time/last_step_at_s",
    section="time",
    unit="s",
    meaning="Time of the last step's end, seconds since 1970",
)
STEPS = Metric(
    key="steps",
    section="train",
    unit="steps",
    meaning="Steps taken by this driver, including repeated ones",
    kind="counter",
)
DURATION = Metric(
    key="rollout/group_duration_s",
    section="rollout",
    unit="s",
    meaning="Groups by duration, from order to rewards",
    kind="histogram",
)
SCORES: dict[str, Metric] = {
    split: Metric(key=f"{place}/{{gym}}/score", section="eval", unit="reward", meaning=meaning)
    for split, place, meaning in (
        ("test", "evaluation", "Mean score on test tasks of this gym at the last evaluation"),
        ("validation", "validation", "Mean score on validation tasks of this gym at the last validation"),
    )
}
"""Scores by the split of the tasks."""
ENDPOINT: tuple[Metric, ...] = (STEP, STEP_AT, STEPS, DURATION, *SCORES.values())
"""Metrics that only the endpoint has, since a line of metrics.jsonl is one step."""
EXPORTED: tuple[Metric, ...] = (*CATALOGUE, *ENDPOINT)


@lru_cache(maxsize=1024)
def find(key: str) -> tuple[Metric, Mapping[str, str]] | None:
    """The metric of a key of metrics.jsonl, and its label values; a metric without labels takes precedence.
    None if the key is unknown.

    Example: `find("rollout/reward/tau")` is the metric `rollout/reward/{gym}` and `{"gym": "tau"}`."""
    for metric in sorted(CATALOGUE, key=lambda one: len(one.labels)):
        labels = metric.labels_of(key)
        if labels is not None:
            return metric, labels
    return None
