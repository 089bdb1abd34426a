"""Benchmark of rollouts against the bare engine, which is their limit: `make bench ONLY=engine_limit`.

The bare engine is the same vLLM in the same process: it is given the prompts that our rollout sent, samples
as many tokens for each as were sampled then, and has as many dialogues at a time, half as many again as it
computes at once: so none of its places stands empty between two turns. No environment, no user, no
renderer and no actor call stands between two requests of the bare engine; a dialogue's prompts come in their
order, so that the prefix cache helps both sides alike.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.engines.vllm_engine import EngineActor
from bench.harness import RUNS, compare, interleaved, run
from bench.quickstart import LONG, SHORT, group_orders, quickstart, write_policy
from bench.result_rows import Row
from bench.rollout_processes import TIMEOUT_S, OurRollout, running
from bench.rollout_totals import Played, played

BENCH = "engine_limit"
LOOK_EVERY_S = 0.1
NUM_DIALOGUES = 192


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """One dialogue of the engine's: what it was asked for, turn by turn."""

    prompts: Sequence[list[int]]  # [num_turns][num_tokens]
    num_tokens: Sequence[int]  # [num_turns]
    """Sampled in each turn."""


async def replay(actor: EngineActor, dialogues: Sequence[Replay], *, num_running: int) -> float:
    """Seconds in which vLLM does all of them, `num_running` at a time. Runs inside the engine actor."""
    waiting = iter(dialogues)

    async def work() -> None:
        for dialogue in waiting:
            for prompt, num_tokens in zip(dialogue.prompts, dialogue.num_tokens, strict=True):
                params = actor._params(max_tokens=num_tokens, temperature=1.0, seed=0)
                params.ignore_eos, params.stop_token_ids = True, []  # so it samples max_tokens
                await actor._sample(prompt, params=params)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(num_running):
            workers.create_task(work())
    return time.perf_counter() - began


class Replaying:
    """A replay inside an engine actor, as a task on its event loop: Ray's own way in takes plain
    functions, and runs them beside that loop."""

    def __init__(self, engine: Any):
        self._engine = engine

    def seconds(self, dialogues: Sequence[Replay], *, num_running: int) -> float:
        def begin(actor: Any, dialogues: Sequence[Replay]) -> None:
            loop = actor._engine.output_handler.get_loop()
            work = replay(actor, dialogues, num_running=num_running)
            actor.replaying = asyncio.run_coroutine_threadsafe(work, loop)

        def done(actor: Any) -> float | None:
            return actor.replaying.result() if actor.replaying.done() else None

        ray.get(self._engine.__ray_call__.remote(begin, dialogues), timeout=TIMEOUT_S)
        while True:
            seconds: Any = ray.get(self._engine.__ray_call__.remote(done), timeout=TIMEOUT_S)
            if seconds is not None:
                return float(seconds)
            time.sleep(LOOK_EVERY_S)


def replays(tables: Sequence[pa.Table]) -> list[Replay]:
    """What the engine was asked for in these groups."""
    found = []
    for table in tables:
        of, forked = table["trajectory"].to_numpy(), table["forked"].to_pylist()
        contexts, completions = table["context_ids"].to_pylist(), table["completion_ids"].to_pylist()
        for trajectory in np.unique(of):
            prompts: list[list[int]] = []
            sequence: list[int] = []
            rows = np.flatnonzero(of == trajectory).tolist()
            for row in rows:
                prompt = [*([] if forked[row] else sequence), *contexts[row]]
                prompts.append(prompt)
                sequence = [*prompt, *completions[row]]
            found.append(Replay(prompts=prompts, num_tokens=[len(completions[row]) for row in rows]))
    return found


def measure(quick: bool) -> list[Row]:
    """Policy tokens a second, gym by gym."""
    config = quickstart(run={"name": "bench-limit"}, rollout={"dialogues_per_actor": NUM_DIALOGUES})
    with tempfile.TemporaryDirectory() as folder:
        policy = write_policy(Path(folder) / "policy", num_demonstrations=200 if quick else 2000)
        with running(config, policy_folder=policy) as ours:
            return [row for gym in (SHORT, LONG) for row in _gym_rows(gym, ours=ours, quick=quick)]


def _gym_rows(gym: str, *, ours: OurRollout, quick: bool) -> list[Row]:
    config, bare = ours.config, Replaying(ours.engine)
    num_groups, runs = (8, 2) if quick else (8 * config.buffer.groups_per_step, RUNS)
    orders = group_orders(config, gym, first=0, num_groups=num_groups)
    done: list[Played] = []
    last: list[pa.Table] = []

    def rollout() -> float:
        seconds, last[:] = ours.play(orders)
        done.append(played(last, seconds=seconds))
        return done[-1].num_tokens / seconds

    def engine() -> float:
        """What the rollout just before it asked for."""
        seconds = bare.seconds(replays(last), num_running=NUM_DIALOGUES)
        return done[-1].num_tokens / seconds

    mine, limit = f"{gym}, rollout", f"{gym}, bare engine"
    found = interleaved({mine: rollout, limit: engine}, runs=runs)
    turns = median([one.num_turns / one.num_trajectories for one in done])
    return [
        *compare(found, bench=BENCH, metric="policy tokens", unit="tokens/s", ratio_to=limit, ours=mine),
        Row(bench=BENCH, case=gym, metric="turns of a trajectory", value=turns, unit="", runs=len(done)),
    ]


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
