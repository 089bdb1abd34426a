"""Benchmark of rollouts against TRL's GRPO with `environment_factory`: the quick-start policy on a short
and a long gym. `make bench ONLY=rollout`.

Both sides play the same kind of tasks with the same policy, group size, turn and token limits, and users who
answer at once or take their time, as a model does. Ours is the path of training: feed, rollout actor, engine
actor, simulated users on Serve. TRL's is its generation alone, in one process, its tools called in process,
with as many threads as suit it best, a training step's dialogues in a batch. Turns and tokens of a trajectory
stand beside the speeds, so that a reader sees that the work is the same.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from actors.trajectory import GroupOrder
from bench.harness import RUNS, compare, interleaved, run
from bench.quickstart import LONG, SHORT, group_orders, quickstart, write_policy
from bench.result_rows import Row
from bench.rollout_processes import OurRollout, running
from bench.rollout_totals import Played, played
from bench.trl_rollout import TrlRollout

BENCH = "rollout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """How long users take, and how much either side plays in a run."""

    delay_s: float
    num_dialogues: int
    """Of ours at a time; TRL's are those of a training step."""
    our_steps: int
    trl_steps: int
    """Groups of so many training steps."""


CASES = (
    Case(delay_s=0.0, num_dialogues=192, our_steps=8, trl_steps=2),
    # TRL calls one dialogue's tools after another's: two steps would take as long as 640 replies.
    Case(delay_s=0.05, num_dialogues=512, our_steps=8, trl_steps=1),
)
QUICK = (
    Case(delay_s=0.0, num_dialogues=192, our_steps=1, trl_steps=1),
    Case(delay_s=0.01, num_dialogues=512, our_steps=1, trl_steps=1),
)


def measure(quick: bool) -> list[Row]:
    """Trajectories and policy tokens a second, by the users' delay and gym."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        policy = write_policy(Path(folder) / "policy", num_demonstrations=200 if quick else 2000)
        trl = TrlRollout(policy, config=quickstart(), output_dir=f"{folder}/trl")
        for case in QUICK if quick else CASES:
            config = quickstart(
                run={"name": f"bench-rollout-{1000 * case.delay_s:.0f}ms"},
                rollout={"dialogues_per_actor": case.num_dialogues},
                simulator={"users": [{"type": "rules", "delay_s": case.delay_s}]},
            )
            with running(config, policy_folder=policy) as ours:
                for gym in (SHORT, LONG):
                    rows += _gym_rows(gym, case, ours=ours, trl=trl, runs=2 if quick else RUNS)
    return rows


def _gym_rows(gym: str, case: Case, *, ours: OurRollout, trl: TrlRollout, runs: int) -> list[Row]:
    per_step = ours.config.buffer.groups_per_step
    our_orders, trl_orders = (
        group_orders(ours.config, gym, first=0, num_groups=steps * per_step)
        for steps in (case.our_steps, case.trl_steps)
    )
    threads = _best_threads(trl, trl_orders[:per_step])
    users = f"{gym}, users of {1000 * case.delay_s:.0f} ms"
    mine, theirs = f"{users}, ours", f"{users}, TRL ({threads} threads)"
    done: dict[str, list[Played]] = {mine: [], theirs: []}
    play: dict[str, Callable[[], Played]] = {
        mine: lambda: _by_us(ours, our_orders),
        theirs: lambda: _by_trl(trl, trl_orders, per_step=per_step, threads=threads, delay_s=case.delay_s),
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


def _by_us(ours: OurRollout, orders: Sequence[GroupOrder]) -> Played:
    seconds, tables = ours.play(orders)
    return played(tables, seconds=seconds)


def _by_trl(
    trl: TrlRollout, orders: Sequence[GroupOrder], *, per_step: int, threads: int, delay_s: float
) -> Played:
    """One batch after the other, each of `per_step` groups."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    parts = [
        trl.play([order.task_key for order in orders[first : first + per_step]], delay_s=delay_s)
        for first in range(0, len(orders), per_step)
    ]
    return Played(
        seconds=time.perf_counter() - began,
        num_trajectories=sum(part.num_trajectories for part in parts),
        num_turns=sum(part.num_turns for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
    )


def _best_threads(trl: TrlRollout, orders: Sequence[GroupOrder]) -> int:
    """One, or all cores: whichever is faster here, each tried once after a warm-up, with users who answer at
    once."""
    tried = sorted({1, len(os.sched_getaffinity(0))})
    play = partial(_by_trl, trl, orders, per_step=len(orders), delay_s=0.0)
    play(threads=tried[0])
    return min(tried, key=lambda threads: play(threads=threads).seconds)


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
