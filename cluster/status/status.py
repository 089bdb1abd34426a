"""`userrl status`: progress, speed and bottleneck of a run, read from its folder in an instant.

Starts nothing, contacts no process, loads no Ray: it works for a run on another machine and for a dead one.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.console.events import finite
from cluster.console.output import put, put_json
from cluster.run_folder.heartbeat import DriverStatus, read_driver_status
from cluster.run_folder.paths import STATE_FILE, RunFolder, find_run
from cluster.status.files import (
    asked_sizes,
    average_scores,
    best_step,
    last_lines,
    last_troubles,
    num_bytes,
    read_recipe,
    recipe_value,
)
from cluster.status.rates import Rates, rates_of, waits_of
from cluster.status.records import CheckpointNow, DriverNow, Reward, RunHealth, SizesNow, Status
from cluster.status.text import status_lines

NUM_TROUBLES = 5


def read_status(path: Path, *, at: float | None = None) -> Status:
    """The run's status; `at` is another now, in seconds since 1970. Raises `BadInput` where the folder is
    none of a run."""
    folder = find_run(path)
    now = time.time() if at is None else at
    table, lines = read_recipe(folder.config), last_lines(folder.metrics)
    last: Mapping[str, Any] = lines[-1] if lines else {}
    pulse, is_running = read_driver_status(folder.status), folder.is_running
    current = pulse if is_running and pulse and pulse.state == "running" else None
    step = last_step = int(last.get("step", 0))
    if current:  # it resumes from a checkpoint and repeats the steps after it
        step = current.step
    num_steps = recipe_value(table, "grpo.num_steps")
    rates = rates_of(lines, dialogues_per_group=_dialogues_per_group(table))
    waits = waits_of(
        lines,
        text=current.waits if current else "",
        since_s=_age(current.waits_since, now=now) if current and current.waits else None,
        places=recipe_value(table, "engine.max_num_seqs"),
        is_synchronous=recipe_value(table, "buffer.max_off_policy_steps") == 0,
        disk_free_bytes=shutil.disk_usage(folder.path).free,
        journal_bytes=num_bytes(folder.journal),
    )
    left_s = _run_left(current, step=step, num_steps=num_steps, rates=rates, now=now)
    return Status(
        run=folder.path.resolve().name,
        folder=str(folder.path),
        health=_health(folder, pulse=pulse, is_running=is_running, num_steps=num_steps),
        is_running=is_running,
        reason=pulse.reason if pulse and not is_running else "",
        driver=_driver(current, now=now) if current else None,
        step=step,
        again_up_to=last_step if step < last_step else None,
        num_steps=num_steps,
        left_s=left_s if is_running else None,
        reward=_reward(folder, last=last),
        scores=average_scores(folder.evaluation),
        rates=rates,
        waits=waits,
        sizes=_sizes(folder, table=table, last=last),
        checkpoint=_checkpoint(folder, now=now),
        troubles=last_troubles(folder.log, number=NUM_TROUBLES, now=now),
    )


def print_status(status: Status, *, as_json: bool) -> None:
    """Some lines for people, or one JSON object, on stdout."""
    if as_json:
        put_json(finite(asdict(status)))
    else:
        put("\n".join(status_lines(status)))


def _health(
    folder: RunFolder, *, pulse: DriverStatus | None, is_running: bool, num_steps: int | None
) -> RunHealth:
    if is_running:
        return "running"
    if folder.state(num_steps=num_steps or 0) == "finished":
        return "finished"
    if pulse is None:
        return "stopped"
    return "killed" if pulse.state == "running" else pulse.state


def _driver(pulse: DriverStatus, *, now: float) -> DriverNow:
    at_stage = bool(pulse.stage)
    return DriverNow(
        pid=pulse.pid,
        host=pulse.host,
        began_at=pulse.began_at,
        silent_s=_age(pulse.at, now=now),
        stage=pulse.stage or ("GRPO" if pulse.step or pulse.waits else ""),
        stage_done=pulse.stage_done if at_stage else None,
        stage_total=pulse.stage_total if at_stage else None,
        stage_left_s=_left(pulse.stage_ends_at, now=now),
    )


def _run_left(
    pulse: DriverStatus | None, *, step: int, num_steps: int | None, rates: Rates, now: float
) -> float | None:
    """The driver's own count; where it has none, steps alone."""
    if pulse and pulse.ends_at is not None:
        return _left(pulse.ends_at, now=now)
    if num_steps is None or rates.step_s is None or not step:
        return None
    return (num_steps - step) * rates.step_s


def _left(ends_at: float | None, *, now: float) -> float | None:
    return None if ends_at is None else max(0.0, ends_at - now)


def _age(moment: float, *, now: float) -> float:
    return max(0.0, now - moment)


def _reward(folder: RunFolder, *, last: Mapping[str, Any]) -> Reward:
    best = best_step(folder.metrics)
    return Reward(
        last=last.get("rollout/reward/mean"),
        best=best[1] if best else None,
        best_step=best[0] if best else None,
    )


def _sizes(folder: RunFolder, *, table: Mapping[str, Any], last: Mapping[str, Any]) -> SizesNow:
    asked = asked_sizes(folder.scale)
    simulators = asked.get("simulators", recipe_value(table, "simulator.num_replicas"))
    return SizesNow(
        rollouts=last.get("rollout/num_actors"),
        engines=last.get("engine/num_serving"),
        learners=recipe_value(table, "learner.num_learners"),
        simulators=simulators,
        num_lost_engines=last.get("engine/num_lost"),
        num_rebuilt_learners=last.get("learner/rebuilds"),
        asked=asked,
    )


def _checkpoint(folder: RunFolder, *, now: float) -> CheckpointNow | None:
    step = folder.latest_step
    if step is None:
        return None
    written = folder.checkpoint(step) / STATE_FILE
    try:
        age_s = _age(written.stat().st_mtime, now=now)
        best = folder.best
    except OSError:  # a newer one takes its place just now
        return None
    return CheckpointNow(
        step=step,
        age_s=age_s,
        best_step=best.step if best else None,
        best_score=best.score if best else None,
    )


def _dialogues_per_group(table: Mapping[str, Any]) -> int | None:
    size = recipe_value(table, "rollout.group_size")
    return None if size is None else size + (recipe_value(table, "rollout.extra_dialogues") or 0)
