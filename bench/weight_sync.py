"""Benchmark of weight sync: seconds from the learner's policy to live weights, and the pause that a
running request sees.

One learner and one engine, each in its own process, in the way that a run would take here, while requests are
being sampled. `engine paused` is the engine's own account, from pause to resume. `pause that a request sees`
is the gap between the last token before and the first one after it, of the request that waited longest, less
the usual gap between two tokens.
"""

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from actors.config import EngineConfig
from actors.engines.vllm_engine import EngineActor
from actors.engines.vllm_settings import HIGH_PRIORITY_ENV
from bench.harness import RUNS, run
from bench.result_rows import Row
from bench.weight_sync_models import shapes, write_policy
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.weight_transport import WeightRoute, find_transport
from learners.config import LearnerConfig, LearnerSettings
from learners.learner import GRPOLearner
from learners.policy_learner import PolicyLearner
from learners.sft_config import SftConfig

ROOT = Path(__file__).resolve().parents[1]
NUM_REQUESTS = 32
CONTEXT = 640
LONGEST = CONTEXT - 64
"""Tokens of a request."""
TOKENS_AROUND = 4
"""Tokens of every request before and after a sync, between which gaps are usual."""
TIMEOUT_S = 600.0


class WatchedEngine(EngineActor):
    """An engine with requests of its own, whose tokens are timed as they arrive."""

    async def watch(self) -> None:
        """Samples `NUM_REQUESTS` sequences from now on, each followed by another."""
        # By the clock of `EngineClock`. NaN between two requests: there lies a prompt, not a gap.
        self._stamps: list[list[float]] = [[] for _ in range(NUM_REQUESTS)]
        self._watching = [asyncio.ensure_future(self._follow(i)) for i in range(NUM_REQUESTS)]
        await self.settle()

    async def settle(self) -> None:
        """Forgets all stamps, and returns when each request has some again."""
        for stamps in self._stamps:
            stamps.clear()
        await self._some_tokens()

    async def gaps(self) -> tuple[float, float]:
        """What `gaps_around` says of the last pause, after it is over; `settle` comes before it."""
        await self._some_tokens([len(stamps) for stamps in self._stamps])
        return gaps_around(self._clock.latest_pause, stamps=self._stamps)

    async def _some_tokens(self, have: Sequence[int] = (0,) * NUM_REQUESTS) -> None:
        while any(len(s) < n + TOKENS_AROUND for s, n in zip(self._stamps, have, strict=True)):
            for task in self._watching:
                if task.done():
                    task.result()
            await asyncio.sleep(0.005)

    async def _follow(self, index: int) -> None:
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        number = index
        # The first ends early, each at its own time: if all began anew at once, no stamps would span a sync.
        num_tokens = LONGEST * (index + 1) // NUM_REQUESTS
        while True:
            params = self._params(max_tokens=num_tokens, temperature=1.0, seed=number)
            params.output_kind = RequestOutputKind.DELTA
            params.ignore_eos, params.stop_token_ids = True, []
            prompt = tokens_input([2 + number % 200] * 32, cache_salt=str(number))
            async for _ in self._running().generate(prompt, params, request_id=f"watched-{number}"):
                self._stamps[index].append(time.monotonic())
            self._stamps[index].append(math.nan)
            number += NUM_REQUESTS
            num_tokens = LONGEST


def gaps_around(pause: tuple[float, float], *, stamps: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The longest gap between two tokens of one request that has a part of the pause in it, and the median of
    all other gaps, in seconds. `stamps` [num_requests][num_tokens] is when tokens came; NaN where the next
    request begins."""
    before = np.concatenate([np.asarray(one[:-1]) for one in stamps])
    after = np.concatenate([np.asarray(one[1:]) for one in stamps])
    begin, end = pause
    is_paused, gaps = (before < end) & (after > begin), after - before
    return float(gaps[is_paused].max()), float(np.nanmedian(gaps[~is_paused]))


class SendingLearner:
    """What `GRPOLearner` does about weights, without RLlib around it."""

    def __init__(self, folder: str, config: LearnerConfig):
        settings = LearnerSettings(
            policy_folder=folder,
            learner=config,
            sft=SftConfig(),
            temperature=1.0,
            seed=0,
            reference_folder="",
        )
        self._learner = PolicyLearner(settings)
        self._sender = None

    weights = GRPOLearner.weights
    send_weights = GRPOLearner.send_weights

    def apply(self, work: Callable[[Any], Any]) -> Any:
        return work(self)


def measure_size(name: str, shape: Mapping[str, int], *, runs: int) -> list[Row]:
    """One policy: an engine and a learner are started, weights sent twice uncounted, then `runs` times."""
    on_gpu = torch.cuda.is_available()
    num_gpus = 0.0 if not on_gpu else 0.5 if torch.cuda.device_count() == 1 else 1.0
    config = EngineConfig(
        max_model_len=CONTEXT,
        num_threads=1,
        dtype="bfloat16" if on_gpu else "float32",
        gpu_memory_utilization=0.3,
    )
    create_engine: Any = ray.remote(WatchedEngine)
    create_learner: Any = ray.remote(SendingLearner)
    with tempfile.TemporaryDirectory() as folder:
        num_weights = write_policy(folder, shape)
        engine = create_engine.options(
            num_cpus=0,
            num_gpus=num_gpus,
            max_concurrency=256,
            runtime_env={"env_vars": HIGH_PRIORITY_ENV},
        ).remote(folder, config, 0)
        learner = create_learner.options(num_cpus=0, num_gpus=num_gpus).remote(
            folder, LearnerConfig(num_threads=1, num_gpus_per_learner=int(on_gpu))
        )
        ray.get(engine.start.remote(), timeout=TIMEOUT_S)
        learners = LearnerPool(SimpleNamespace(_workers=[learner]), max_steps=1, timeout_s=TIMEOUT_S)
        transport = find_transport(config, learners=learners, engines=[engine])
        way = WeightRoute(learners=learners, transport=transport, dtype=config.dtype)
        _sync(way, engine, 0)
        ray.get(engine.watch.remote(), timeout=TIMEOUT_S)
        syncs = [_watched_sync(way, engine, version) for version in range(1 + runs)][1:]
        ray.get(engine.stop.remote(), timeout=TIMEOUT_S)
        for actor in (engine, learner):
            ray.kill(actor)
    case = f"{name}, {num_weights / 1e6:,.1f} M weights, {transport}"
    return [
        Row(
            bench="weight_sync",
            case=case,
            metric=metric,
            value=1e3 * median(sync[metric] for sync in syncs),
            unit="ms",
            runs=runs,
        )
        for metric in syncs[0]
    ]


def _sync(way: WeightRoute, engine: ActorHandle, policy_version: int) -> dict[str, float]:
    loading, sent = way.send(policy_version, engines=[engine])
    return sent | ray.get(loading[engine], timeout=TIMEOUT_S)


def _watched_sync(way: WeightRoute, engine: Any, policy_version: int) -> dict[str, float]:
    """Seconds of one sync by what they went to."""
    ray.get(engine.settle.remote(), timeout=TIMEOUT_S)
    start = time.perf_counter()
    metrics = _sync(way, engine, policy_version)
    whole_s = time.perf_counter() - start
    longest_s, usual_s = ray.get(engine.gaps.remote(), timeout=TIMEOUT_S)
    parts = {
        "time/pack_weights_s": "pack",
        "time/engine_write_s": "write",
        "time/engine_paused_s": "engine paused",
    }
    return {
        "whole sync": whole_s,
        **{name: metrics[key] for key, name in parts.items() if key in metrics},
        "pause that a request sees": longest_s - usual_s,
        "usual gap between tokens": usual_s,
    }


def measure(quick: bool) -> list[Row]:
    ray.init(
        "local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    try:
        rows: list[Row] = []
        for name, shape in shapes(quick=quick).items():
            rows += measure_size(name, shape, runs=3 if quick else RUNS)
        return rows
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
