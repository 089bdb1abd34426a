"""Panels of the Grafana dashboard and their PromQL queries, by the names of the metric catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from actors.trajectory_table import TURN_STAGES
from cluster.console.progress import STAGES
from cluster.tracking.metric_catalogue import EXPORTED, Metric
from simulators.users.quality_metrics import SHARES

BY_KEY: dict[str, Metric] = {metric.key: metric for metric in EXPORTED}
STAGE_SHARE = "rollout/time/{stage}/share"
DURATION = "rollout/group_duration_s"
FAILED = "users/{simulator}/failed/{reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromQuery:
    """One query."""

    expression: str
    legend: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GrafanaPanel:
    """A chart, or one large number."""

    title: str
    key: str
    """Of the catalogue: it gives unit and description."""
    lines: Sequence[PromQuery]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    """Of 24 columns."""
    height: int = 8
    is_stacked: bool = False


def now(key: str, *, only: str = "") -> str:
    """The gauge as it is, one line for each of its labels; a driver that was started again counts once."""
    metric = BY_KEY[key]
    return f"max by ({', '.join(('run', *metric.labels))}) ({metric.series}{_choice(only)})"


def per_second(key: str) -> str:
    """What the counter grows by."""
    metric = BY_KEY[key]
    labels = ", ".join(("run", *metric.labels))
    return f"sum by ({labels}) (rate({metric.series}{_choice()}[$__rate_interval]))"


def quantile(key: str, share: float) -> str:
    """Of a histogram, over the last ten minutes."""
    boxes = f"{BY_KEY[key].series}_bucket{_choice()}[10m]"
    return f"histogram_quantile({share:g}, sum by (run, le) (rate({boxes})))"


def rows() -> dict[str, list[GrafanaPanel]]:
    """By heading."""
    return {
        "Run": _run(),
        "Reward": [
            _single("Reward of a trajectory", "rollout/reward/mean"),
            _single("By gym", "rollout/reward/{gym}"),
            _several(
                "Evaluations, by gym",
                {"evaluation/{gym}/score": "{{gym}}", "validation/{gym}/score": "{{gym}}, validation"},
            ),
        ],
        "Policy": [
            _single("Entropy", "learner/entropy"),
            _single("KL to what sampled", "learner/kl"),
            _single("Logprob gap of engine and learner", "learner/logprob_gap/mean"),
            _single("Gradient norm", "learner/grad_norm"),
            _single("Clipped tokens", "learner/clip_fraction"),
            _single("Turns of a dialogue", "rollout/turns/mean"),
        ],
        "Time": _time(),
        "Simulated users": [
            *(_single(_words(gauge), f"users/{{simulator}}/{gauge}", width=6) for gauge in SHARES),
            GrafanaPanel(
                title="Failures a second",
                key=FAILED,
                lines=[_line(per_second(FAILED), "{{simulator}} {{reason}}")],
                width=6,
            ),
            _single("Calls at a time", "users/{simulator}/concurrency/mean", width=6),
        ],
        "Ledger, processes and faults": _ledger(),
    }


def _run() -> list[GrafanaPanel]:
    numbers = {
        "Step": "step",
        "Reward": "rollout/reward/mean",
        "Policy tokens a second": "rollout/tokens_per_s",
        "Trajectories trained": "ledger/trained",
        "Seconds of a step": "time/step_s",
        "Since the last step": "time/last_step_at_s",
    }
    queries = {title: now(key) for title, key in numbers.items()}
    queries["Since the last step"] = f"time() - {now('time/last_step_at_s')}"
    return [
        GrafanaPanel(title=title, key=key, lines=[_line(queries[title])], kind="stat", width=4, height=4)
        for title, key in numbers.items()
    ]


def _time() -> list[GrafanaPanel]:
    return [
        _several("A step, by stage", {f"time/{stage}_s": stage for stage in STAGES}, is_stacked=True),
        _several(
            "Idle",
            {
                "learner/idle/share": "learners",
                "engine/idle/share": "engines",
                "engine/paused/share": "engines, for weights",
            },
        ),
        GrafanaPanel(
            title="Time of a turn by stage",
            key=STAGE_SHARE,
            lines=[_line(now(STAGE_SHARE, only=f'stage="{stage}"'), stage) for stage in TURN_STAGES],
            is_stacked=True,
        ),
        GrafanaPanel(
            title="Tokens a second",
            key="rollout/tokens_per_s",
            lines=[
                _line(per_second("rollout/policy_tokens"), "said"),
                _line(per_second("learner/num_tokens"), "learned from, prompts among them"),
            ],
        ),
        GrafanaPanel(
            title="A group, from order to rewards",
            key=DURATION,
            lines=[_line(quantile(DURATION, 0.5), "median"), _line(quantile(DURATION, 0.95), "95 %")],
        ),
        _single("A turn, by gym", "rollout/turn_s/{gym}"),
    ]


def _ledger() -> list[GrafanaPanel]:
    return [
        _several(
            "Trajectories",
            {"ledger/issued": "issued", "ledger/trained": "trained", "ledger/in_flight": "in flight"},
        ),
        _single("Dropped, by reason", "ledger/dropped/{reason}"),
        _several("Age of what was trained", {"buffer/age/max": "oldest", "buffer/age/mean": "mean"}),
        _several("Groups", {"buffer/slots_taken": "slots taken", "buffer/groups_ready": "ready"}),
        _several("Processes", {"rollout/num_actors": "rollout actors", "engine/num_serving": "engines"}),
        _several(
            "Faults so far",
            {
                "buffer/reissued": "groups given to others",
                "engine/num_lost": "engines lost",
                "learner/rebuilds": "learners replaced",
                "checkpoint/failures": "checkpoints not written",
                "buffer/archive_failures": "files not written",
                "buffer/journal_failures": "journal writes tried again",
            },
        ),
    ]


def _single(title: str, key: str, *, width: int = 8) -> GrafanaPanel:
    legend = " ".join(f"{{{{{label}}}}}" for label in BY_KEY[key].labels)
    return GrafanaPanel(title=title, key=key, lines=[_line(now(key), legend)], width=width)


def _several(title: str, legends: Mapping[str, str], *, is_stacked: bool = False) -> GrafanaPanel:
    """Gauges of one unit in one chart; the first gives the description."""
    lines = [_line(now(key), legend) for key, legend in legends.items()]
    return GrafanaPanel(title=title, key=next(iter(legends)), lines=lines, is_stacked=is_stacked)


def _line(expression: str, legend: str = "") -> PromQuery:
    return PromQuery(expression=expression, legend=f"{{{{run}}}} {legend}".strip())


def _choice(only: str = "") -> str:
    return f'{{run=~"$run"{", " + only if only else ""}}}'


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
