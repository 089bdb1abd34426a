"""Charts of metrics.jsonl, for one run or several in comparison."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from actors.trajectory_table import TURN_STAGES
from cluster.console.progress import STAGES
from cluster.report.charts import NUM_COLOURS, Chart, Series
from cluster.report.curves import thinned
from cluster.report.run_rows import RunRows
from simulators.users.quality_metrics import SHARES

DROPPED = "ledger/dropped/"


def time_charts(runs: Sequence[RunRows]) -> list[Chart]:
    """A step's seconds and a turn's shares: each stage of one run, the whole of several."""
    idle = {"learner/idle/share": "learners", "engine/idle/share": "engines"}
    idle_chart = metric_chart(
        runs, idle | {"engine/paused/share": "engines, for weights"}, title="Idle", share=True,
        note="share of the time in which they stood still",
    )  # fmt: skip
    throughput = metric_chart(runs, {"rollout/tokens_per_s": "tokens"}, title="Policy tokens a second")
    if len(runs) > 1:
        step = metric_chart(
            runs, {"time/step_s": "a step"}, title="Seconds of a step", note="time/step_s", unit="s"
        )
        users = {"rollout/time/user/share": "users", "rollout/time/queue/share": "queue"}
        turn = metric_chart(runs, users, title="Waiting in a turn", share=True)
        return [step, turn, idle_chart, throughput]
    step = stack_chart(
        runs[0], {f"time/{stage}_s": stage for stage in STAGES}, title="Seconds of a step",
        note="stages of the driver; together they are time/step_s", unit="s",
    )  # fmt: skip
    turn = stack_chart(
        runs[0], {f"rollout/time/{stage}/share": stage for stage in TURN_STAGES}, title="Time of a turn",
        note="shares of the seconds of all turns", share=True,
    )  # fmt: skip
    by_gym = {key: key.rpartition("/")[2] for key in runs[0].metrics if key.startswith("rollout/turn_s/")}
    turn_s = metric_chart(runs, by_gym, title="Seconds of a turn by gym", unit="s")
    return [step, turn, idle_chart, throughput, turn_s]


def ledger_charts(runs: Sequence[RunRows]) -> list[Chart]:
    if len(runs) > 1:
        trained = metric_chart(runs, {"ledger/trained": "trained"}, title="Trajectories trained")
        return [trained, metric_chart(runs, {"ledger/dropped/flat": "flat"}, title="Dropped as flat")]
    reasons = {
        key: f"dropped: {key.removeprefix(DROPPED)}"
        for key, values in runs[0].metrics.items()
        if key.startswith(DROPPED) and np.nan_to_num(values).any()
    }
    keys = {"ledger/trained": "trained", **reasons, "ledger/in_flight": "in flight"}
    return [stack_chart(runs[0], keys, title="Issued trajectories", note="all since the run began")]


def age_charts(runs: Sequence[RunRows]) -> list[Chart]:
    return [
        metric_chart(
            runs, {f"buffer/{kind}/max": "largest", f"buffer/{kind}/mean": "mean"}, title=title, note=note,
            unit="versions",
        )
        for kind, title, note in (
            ("age", "Age of a group", "version that trained minus that of its oldest token"),
            ("span", "Versions inside a trajectory", "newest minus oldest"),
        )
    ]  # fmt: skip


def gauge_charts(runs: Sequence[RunRows]) -> list[Chart]:
    """One chart a gauge, one line a simulator, and what users failed at."""
    charts = []
    for gauge in SHARES:
        pattern = re.compile(rf"users/([^/]+)/{gauge}")
        keys = {key: match[1] for run in runs for key in run.metrics if (match := pattern.fullmatch(key))}
        limits = {f"{getattr(run.config.simulator.alarms, gauge):.0%}" for run in runs if run.config}
        note = f"alarming above {', '.join(sorted(limits))}" if limits else ""
        title = gauge.replace("_", " ").capitalize()
        charts.append(metric_chart(runs, keys, title=title, note=note, share=True))
    failed = {
        key: f"{parts[1]}: {parts[3]}"
        for run in runs
        for key in run.metrics
        if len(parts := key.split("/")) == 4 and parts[0] == "users" and parts[2] == "failed"
    }
    charts.append(metric_chart(runs, failed, title="Trajectories that a user failed"))
    return charts


def learner_charts(runs: Sequence[RunRows]) -> list[Chart]:
    single = {
        "learner/entropy": "Entropy",
        "learner/loss": "Loss",
        "learner/grad_norm": "Gradient norm",
        "learner/kl": "KL to the behavior policy",
        "learner/reference_kl": "KL to the reference",
        "learner/clip_fraction": "Clipped tokens",
        "learner/logprob_gap/mean": "Logprob gap of engine and learner",
        "rollout/turns/mean": "Turns of a dialogue",
        "learner/num_loss_tokens": "Trained tokens of a step",
    }
    shares = ("learner/clip_fraction",)
    return [
        metric_chart(runs, {key: title.lower()}, title=title, note=key, share=key in shares)
        for key, title in single.items()
    ]


def metric_chart(
    runs: Sequence[RunRows],
    keys: Mapping[str, str],
    *,
    title: str,
    note: str = "",
    unit: str = "",
    share: bool = False,
) -> Chart:
    """One line for each of `keys` (metric to name), run by run: a run has a colour, a key a dash; of a single
    run each key has a colour."""
    series = []
    for number, run in enumerate(runs):
        for place, (key, name) in enumerate(keys.items()):
            if key not in run.metrics:
                continue
            kept = np.isin(run.steps, thinned(run.steps))
            whole = name if len(runs) == 1 else run.name if len(keys) == 1 else f"{run.name}: {name}"
            series.append(
                Series(
                    name=whole,
                    x=run.steps[kept].tolist(),
                    y=run.metrics[key][kept].tolist(),
                    look=place if len(runs) == 1 else number % NUM_COLOURS + NUM_COLOURS * place,
                )
            )
    return Chart(key=chart_key(title), title=title, series=series, note=note, unit=unit, share=share)


def stack_chart(
    run: RunRows,
    keys: Mapping[str, str],
    *,
    title: str,
    note: str = "",
    unit: str = "",
    share: bool = False,
) -> Chart:
    """The keys of one run on each other."""
    plain = metric_chart([run], keys, title=title)
    return Chart(
        key=plain.key, title=title, series=plain.series, note=note, unit=unit, share=share, stacked=True
    )


def chart_key(*words: str) -> str:
    """A name for the page. Example: `("reward", "tau")` gives `reward-tau`."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(word for word in words if word).lower()).strip("-")
