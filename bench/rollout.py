"""Rollouts of the quick-start policy on a short and a long gym against TRL's GRPO with `environment_factory`:
`make bench ONLY=rollout`.

Both sides play the same tasks with the same policy, group size, turn and token limits. Ours is the path of
training: feed, rollout actor, engine actor, simulated users on Serve. TRL's is its generation alone, in one
process, its tools called in process, with as many threads as suit it best. Turns and tokens of a trajectory
stand beside the speeds, so that a reader sees that the work is the same.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from actors.trajectory import GroupOrder
from bench.our_rollout import OurRollout, running
from bench.part import RUNS, compare, interleaved, run
from bench.played import Played, played
from bench.quickstart import LONG, SHORT, group_orders, quickstart, write_policy
from bench.rows import Row
from bench.trl_rollout import TrlRollout
from cluster.config import RunConfig

BENCH = "rollout"


def measure(quick: bool) -> list[Row]:
    """Trajectories and policy tokens a second, gym by gym."""
    config = quickstart(run={"name": "bench-rollout"})
    with tempfile.TemporaryDirectory() as folder:
        policy = write_policy(Path(folder) / "policy", num_demonstrations=200 if quick else 2000)
        trl = TrlRollout(policy, config=config, output_dir=f"{folder}/trl")
        with running(config, policy_folder=policy) as ours:
            rows: list[Row] = []
            for gym in (SHORT, LONG):
                rows += _gym_rows(gym, config=config, ours=ours, trl=trl, quick=quick)
    return rows


def _gym_rows(gym: str, *, config: RunConfig, ours: OurRollout, trl: TrlRollout, quick: bool) -> list[Row]:
    num_groups, runs = (4, 2) if quick else (2 * config.buffer.groups_per_step, RUNS)
    orders = group_orders(config, gym, first=0, num_groups=num_groups)
    threads = _best_threads(trl, orders[: config.buffer.groups_per_step])
    mine, theirs = f"{gym}, ours", f"{gym}, TRL ({threads} threads)"
    done: dict[str, list[Played]] = {mine: [], theirs: []}
    play: dict[str, Callable[[], Played]] = {
        mine: lambda: played_by(ours, orders),
        theirs: partial(
            _by_trl, trl, orders, groups_per_batch=config.buffer.groups_per_step, threads=threads
        ),
    }

    def once(side: str) -> float:
        done[side].append(play[side]())
        return done[side][-1].num_trajectories / done[side][-1].seconds

    speeds = interleaved({side: partial(once, side) for side in play}, runs=runs)
    tokens = {side: [one.num_tokens / one.seconds for one in done[side][1:]] for side in done}
    report = partial(compare, bench=BENCH, ratio_to=theirs, ours=mine)
    return [
        *report(speeds, metric="trajectories", unit="trajectories/s"),
        *report(tokens, metric="policy tokens", unit="tokens/s"),
        *_work_rows({side: done[side][1:] for side in done}),
    ]


def _work_rows(done: dict[str, list[Played]]) -> list[Row]:
    """What a trajectory was, on either side."""
    return [
        Row(bench=BENCH, case=side, metric=metric, value=median(values), unit="", runs=len(values))
        for side, each in done.items()
        for metric, values in (
            ("turns of a trajectory", [one.num_turns / one.num_trajectories for one in each]),
            ("policy tokens of a trajectory", [one.num_tokens / one.num_trajectories for one in each]),
        )
    ]


def played_by(ours: OurRollout, orders: Sequence[GroupOrder]) -> Played:
    seconds, tables = ours.play(orders)
    return played(tables, seconds=seconds)


def _by_trl(trl: TrlRollout, orders: Sequence[GroupOrder], *, groups_per_batch: int, threads: int) -> Played:
    """One batch after the other, each as large as a training step's."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    parts = [
        trl.play([order.task_key for order in orders[first : first + groups_per_batch]])
        for first in range(0, len(orders), groups_per_batch)
    ]
    return Played(
        seconds=time.perf_counter() - began,
        num_trajectories=sum(part.num_trajectories for part in parts),
        num_turns=sum(part.num_turns for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
    )


def _best_threads(trl: TrlRollout, orders: Sequence[GroupOrder]) -> int:
    """One, or all cores: whichever is faster here, each tried once after a warm-up."""
    tried = sorted({1, len(os.sched_getaffinity(0))})
    play = partial(_by_trl, trl, orders, groups_per_batch=len(orders))
    play(threads=tried[0])
    return min(tried, key=lambda threads: play(threads=threads).seconds)


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
