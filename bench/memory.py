"""Benchmark of memory growth over a day's steps: a driver's loop without learners and engines, at full
speed.

Real rollout actor (a scripted policy), feed, buffer, journal, archive, checkpoints of the buffer, history,
tracker, metrics endpoint, and an evaluation now and then. What is reported is what each process's own memory
and the object store grow by, per 1,000 steps of the second half: the first one fills caches.
`python -m bench.memory`.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from actors.config import RolloutConfig
from bench.harness import run
from bench.result_rows import Row
from bench.scripted_dialogues import GYM, create_buffer, scripted_setup, write_policy
from cluster.config.run_config import BufferConfig, GymsConfig, RunConfig, RunNameConfig, TrackingConfig
from cluster.driver.algorithm_config import create_rollouts
from cluster.evaluation.evaluate import orders_for, play
from cluster.ray_cluster.start import start_ray
from cluster.run_folder.atomic_files import write_whole
from cluster.run_folder.paths import RunFolder
from cluster.tracking.prometheus import MetricsEndpoint
from cluster.tracking.step_metrics import StageTimer, age_metrics, engine_metrics, step_metrics
from cluster.tracking.tracker import Tracker
from cluster.workers.buffer_client import BufferClient
from cluster.workers.engine_pool import no_engines
from cluster.workers.learner_replay import LearnerCall, LearnerReplay
from cluster.workers.play_orders import OrderPlayer
from cluster.workers.rollout_pool import Assignment
from cluster.workers.supervisor import Supervisor

STEPS_OF_A_DAY = 21_600
"""Of 4 s each, as the quick start's are."""
GROUP_SIZE, GROUPS_PER_STEP = 2, 2
CHECKPOINT_STEPS = 10
EVALUATION_STEPS = 500
NUM_LOOKS = 128
TIMEOUT_S = 120.0
MB = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Megabytes after a step, and a count."""

    step: int
    driver: float
    """This and the next three: what the process has for itself alone."""
    buffer: float
    rollout_actor: float
    gcs: float
    """Ray's own head process. It keeps what happened to tasks, up to a limit of Ray's."""
    store: float
    """Bytes of living objects."""
    objects: int


class Day:
    """The loop. Ray must run; `close` ends everything but Ray."""

    def __init__(self, folder: Path):
        self._run = _config(folder)
        self.folder = RunFolder.of(self._run)
        self.folder.create(self._run)
        setup = scripted_setup(self._run.rollout, policy_folder=write_policy(folder / "policy"), delay_s=0.0)
        engines = no_engines()
        self._rollouts = create_rollouts(self._run, setup, engines=engines)
        self._buffer = create_buffer(self._run, run_folder=self.folder.path)
        self._groups = BufferClient(self._buffer, run=self._run, archive=self.folder.trajectories)
        training = Assignment(source=self._buffer, group_size=self._run.rollout.num_dialogues)
        self._supervisor = Supervisor(
            self._rollouts, engines, deliver_weights=lambda: None, training=training
        )
        self._history = LearnerReplay(max_steps=4 * CHECKPOINT_STEPS)
        self._tracker = Tracker(self.folder, config=self._run)
        self._endpoint = MetricsEndpoint(
            run=self._run.run.name, targets=self.folder.scrape_targets, live=self._groups.metrics
        )
        self._processes = self._find_processes()
        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)

    def step(self, number: int) -> None:
        """What the driver does in a step. The scripted policy has no version: all are of the first."""
        laps = StageTimer()
        groups = self._groups.take(policy_version=0, supervisor=self._supervisor)
        laps.end("wait")
        rows = [group.payload for group in groups]
        self._history.add(
            LearnerCall(stage="grpo", work=lambda learner: learner.update_groups(rows, step=number))
        )
        laps.end("update")
        settled = self._groups.mark_trained(groups, step=number)
        self._groups.release(groups, policy_version=0, live=[])
        laps.end("weights")
        self._groups.finish_release()
        laps.end("sync")
        if number % CHECKPOINT_STEPS == 0:
            self._checkpoint()
        if number % EVALUATION_STEPS == 0:
            self._evaluate()
        state = self._groups.metrics()
        laps.end("report")
        metrics = {
            **step_metrics(laps.metrics(), update={"time/learn_s": 0.0}, settled=settled),
            **age_metrics([group.summary for group in groups], policy_version=0),
            **engine_metrics([]),
            **state,
        }
        self._endpoint.note_step(number, metrics, settled)
        self._tracker.log_step(number, metrics=metrics)

    def look(self, step: int) -> Look:
        """What there is now."""
        store = get_memory_info_reply(self._state).store_stats
        own = {name: process.memory_full_info().uss / MB for name, process in self._processes.items()}
        return Look(
            step=step, store=store.object_store_bytes_used / MB, objects=int(store.num_local_objects), **own
        )

    def close(self) -> None:
        self._endpoint.close()
        self._tracker.close()
        ray.kill(self._buffer)
        self._rollouts._env_runners.stop()

    def _checkpoint(self) -> None:
        """The buffer's part, as a run's driver writes it; then older files of the archive go, for room."""
        state = self._groups.state()
        write_whole(self.folder.path / "driver.json", json.dumps(state))
        self._groups.trim_log(before=state["journal"]["first"])
        self._history.rebase(self.folder.path, moment=self._history.moment)
        for path in sorted(self.folder.trajectories.glob("*.parquet"))[:-CHECKPOINT_STEPS]:
            path.unlink()

    def _evaluate(self) -> None:
        orders = orders_for([GYM], split="test", num_tasks=8, seed=0, difficulty=0)
        archive = self.folder.trajectories / "evaluation-memory.parquet"
        play(
            orders,
            player=OrderPlayer(self._rollouts, self._supervisor),
            policy=None,
            title="evaluate",
            keep=lambda tables: None,
            archive=archive,
        )

    def _find_processes(self) -> dict[str, psutil.Process]:
        pids: list[Any] = self._rollouts._env_runners.foreach_env_runner(
            lambda actor: os.getpid(), local_env_runner=False, timeout_seconds=TIMEOUT_S
        )
        buffer: Any = ray.get(self._buffer.__ray_call__.remote(_pid), timeout=TIMEOUT_S)
        mine = psutil.Process()
        gcs = next(one for one in mine.children(recursive=True) if one.name().startswith("gcs_server"))
        return {
            "driver": mine,
            "buffer": psutil.Process(buffer),
            "rollout_actor": psutil.Process(pids[0]),
            "gcs": gcs,
        }


def watch(folder: Path, *, num_steps: int) -> tuple[list[Look], float]:
    """Looks spread over so many steps, and steps a second. Ray must run."""
    every = max(1, num_steps // NUM_LOOKS)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # a line a step
        day = Day(folder)
        try:
            began, looks = time.perf_counter(), list[Look]()
            for number in range(1, num_steps + 1):
                day.step(number)
                if number % every == 0:
                    looks.append(day.look(number))
            return looks, num_steps / (time.perf_counter() - began)
        finally:
            day.close()


def growth(looks: Sequence[Look], name: str) -> float:
    """Of one number, per 1,000 steps, over the second half of the looks: the slope of a straight line."""
    late = looks[len(looks) // 2 :]
    values = [float(getattr(look, name)) for look in late]
    return 1000.0 * float(np.polyfit([look.step for look in late], values, 1)[0])


def measure(quick: bool) -> list[Row]:
    num_steps = 400 if quick else STEPS_OF_A_DAY
    started = start_ray(None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            looks, rate = watch(Path(folder), num_steps=num_steps)
    finally:
        if started:
            ray.shutdown()
    rows = [_row("all", f"steps a second, over {num_steps:,}", rate, "1/s")]
    for name in ("driver", "buffer", "rollout_actor", "gcs", "store", "objects"):
        unit, what = ("", "living objects") if name == "objects" else ("MB", "memory")
        case = name.replace("_", " ")
        rows += [
            _row(case, f"{what}, growth per 1,000 steps", growth(looks, name), unit),
            _row(case, f"{what} at the end", float(getattr(looks[-1], name)), unit),
        ]
    return rows


def _config(folder: Path) -> RunConfig:
    return RunConfig(
        run=RunNameConfig(name="memory", folder=str(folder)),
        gyms=GymsConfig(weights={GYM: 1.0}),
        rollout=RolloutConfig(num_actors=1, dialogues_per_actor=8, group_size=GROUP_SIZE),
        buffer=BufferConfig(groups_per_step=GROUPS_PER_STEP, max_off_policy_steps=2),
        tracking=TrackingConfig(mode="disabled"),
    )


def _pid(actor: object) -> int:
    return os.getpid()


def _row(case: str, metric: str, value: float, unit: str) -> Row:
    return Row(bench="memory", case=case, metric=metric, value=value, unit=unit, runs=1)


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
