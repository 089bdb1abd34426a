"""Benchmark of scaling without a model: 1 to 8 rollout actors with a slow user, 100 to 20,000 concurrent
dialogues, and the driver's and the buffer's time per trajectory.

Policies are scripted, so that the numbers are those of rollout actors, feed, buffer and driver alone.
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import ray

from actors.engines.protocol import Sampling
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout_group
from actors.trajectory import GroupOrder
from bench.driver_loop import Loop, Usage
from bench.harness import RUNS, run
from bench.result_rows import Row
from bench.scripted_dialogues import (
    GROUP_SIZE,
    GYM,
    MAX_TOKENS,
    NUM_TURNS,
    connect_talker,
    connect_user,
    write_policy,
)
from cluster.ray_cluster.start import start_ray
from simulators.gyms import GYMS
from simulators.task import TaskSource

USER_DELAY_S = 0.2
ACTORS = (1, 2, 4, 8)
DIALOGUES_PER_ACTOR = 32
"""So few that eight actors leave two cores some rest."""
GROUPS_PER_STEP = 8
CROWDS = (100, 1000, 5000, 20_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """Dialogues at once on one event loop."""

    turns_per_s: float
    cpu_per_turn_ms: float
    kib_per_dialogue: float


async def play_crowd(num_dialogues: int, *, policy_folder: str) -> Crowd:
    """All begin at the same time; memory is what they have when the last of them ends."""
    engine, renderer = connect_talker(policy_folder), Renderer.from_folder(policy_folder)
    context = RolloutContext(
        engine_for=lambda task, seed: engine,
        user=connect_user(None, delay_s=USER_DELAY_S),
        renderer=renderer,
        sampling=Sampling(),
        gyms=GYMS,
        personas="plain",
        max_turns=None,
        max_tokens=MAX_TOKENS,
    )
    source = TaskSource({GYM: 1.0}, split="train", seed=0, difficulty=0)
    orders = [
        GroupOrder(group_id=index, task_key=source.draw(), group_size=GROUP_SIZE, seed=0)
        for index in range(-(-num_dialogues // GROUP_SIZE))
    ]
    gc.collect()
    memory = _resident()
    began, cpu = time.perf_counter(), time.process_time()
    groups = await asyncio.gather(*(rollout_group(order, context) for order in orders))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    grown = _resident() - memory
    trajectories = [trajectory for group in groups for trajectory in group]
    num_turns = sum(len(trajectory.turns) for trajectory in trajectories)
    assert num_turns == len(trajectories) * NUM_TURNS, "every dialogue goes to its end"
    return Crowd(
        turns_per_s=num_turns / wall,
        cpu_per_turn_ms=1000 * cpu / num_turns,
        kib_per_dialogue=grown / 1024 / len(trajectories),
    )


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _crowd_rows(write_policy(folder / "crowd"), quick=quick)
        started = start_ray(None)
        try:
            rows += _actor_rows(folder, quick=quick)
        finally:
            if started:
                ray.shutdown()
    return rows


def _crowd_rows(policy_folder: str, *, quick: bool) -> list[Row]:
    rows: list[Row] = []
    asyncio.run(play_crowd(100, policy_folder=policy_folder))  # the first imports and fills caches
    for size in CROWDS[:2] if quick else CROWDS:
        num_runs = 1 if quick or size > 5000 else RUNS
        crowds = [asyncio.run(play_crowd(size, policy_folder=policy_folder)) for _ in range(num_runs)]
        case = f"{size:,} dialogues, one process"
        rows += [
            _row(case, "turns/s", [crowd.turns_per_s for crowd in crowds], "1/s"),
            _row(case, "CPU per turn", [crowd.cpu_per_turn_ms for crowd in crowds], "ms"),
        ]
        if size == CROWDS[-1]:  # fewer fit into memory that the process has anyway
            memory = [crowd.kib_per_dialogue for crowd in crowds]
            rows.append(_row(case, "memory per dialogue", memory, "KiB"))
    return rows


def _actor_rows(folder: Path, *, quick: bool) -> list[Row]:
    loop = Loop(folder=folder, user_delay_s=USER_DELAY_S)
    rows: list[Row] = []
    one_actor: float | None = None
    for num_actors in ACTORS[:2] if quick else ACTORS:
        loop.grow(num_actors)
        usages = [
            loop.measure(
                dialogues_per_actor=DIALOGUES_PER_ACTOR,
                groups_per_step=GROUPS_PER_STEP,
                warm_up=1 + num_actors,
                num_steps=(2 if quick else 3) * num_actors,
            )
            for _ in range(1 if quick else RUNS)
        ]
        rows += _usage_rows(_case(num_actors), usages, num_actors=num_actors, one_actor=one_actor)
        one_actor = one_actor or median(usage.rate for usage in usages)
    if not quick:
        usage = loop.measure(
            dialogues_per_actor=CROWDS[-1] // max(ACTORS), groups_per_step=256, warm_up=4, num_steps=8
        )
        rows += _usage_rows(
            f"{CROWDS[-1]:,} dialogues, {_case(max(ACTORS))}", [usage], num_actors=max(ACTORS), one_actor=None
        )
    return rows


def _case(num_actors: int) -> str:
    return "1 actor" if num_actors == 1 else f"{num_actors} actors"


def _usage_rows(case: str, usages: list[Usage], *, num_actors: int, one_actor: float | None) -> list[Row]:
    """`one_actor` is that case's trajectories a second, where this one is compared with it."""

    def each(seconds: str) -> list[float]:
        return [1000 * getattr(usage, seconds) / usage.num_trajectories for usage in usages]

    rates = [usage.rate for usage in usages]
    shares = [100 * rate / (num_actors * one_actor) for rate in rates] if one_actor else []
    return [
        _row(case, "trajectories/s", rates, "1/s", one_actor=one_actor),
        *([_row(case, "trajectories/s, share of linear", shares, "%")] if shares else []),
        _row(case, "CPUs busy", [100 * usage.busy for usage in usages], "%"),
        _row(case, "driver CPU per trajectory", each("driver_s"), "ms"),
        _row(case, "buffer CPU per trajectory", each("buffer_s"), "ms"),
        _row(case, "rollout actors' CPU per trajectory", each("actors_s"), "ms"),
    ]


def _row(case: str, metric: str, values: list[float], unit: str, *, one_actor: float | None = None) -> Row:
    print(f"{case}: {metric} {median(values):.4g} {unit}", flush=True)
    return Row(
        bench="scaling",
        case=case,
        metric=metric,
        value=median(values),
        unit=unit,
        runs=len(values),
        ratio_to=_case(1) if one_actor else "",
        ratio=median(values) / one_actor if one_actor else None,
    )


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
