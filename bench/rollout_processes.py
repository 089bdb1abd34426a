"""The system's side of the rollout benchmarks: engines, users, rollout actors and buffer, started as
`userrl train` starts them."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from actors.trajectory import GroupOrder
from cluster.config.run_config import RunConfig
from cluster.console.progress import quiet_libraries
from cluster.driver.algorithm_config import create_rollouts
from cluster.ray_cluster.start import start_ray
from cluster.workers.engine_pool import serve_own_weights
from cluster.workers.play_orders import create_fixed_source
from cluster.workers.rollout_pool import Assignment, RolloutPool
from cluster.workers.services import Services, start_services
from learners.buffer.group_store import fetch_groups

TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OurRollout:
    """Running services and rollout actors."""

    config: RunConfig
    services: Services
    rollouts: RolloutPool

    @property
    def engine(self) -> ActorHandle:
        return self.services.engines.running[0]

    def play(self, orders: Sequence[GroupOrder]) -> tuple[float, list[pa.Table]]:
        """Seconds from the orders to the last finished group in the feed, and the groups' tables."""
        feed = create_fixed_source(orders, group_timeout_s=TIMEOUT_S)
        ray.get(feed.finished_since.remote(0), timeout=TIMEOUT_S)  # its process is up: a run has one feed
        began = time.perf_counter()
        self.rollouts.poll(Assignment(source=feed, group_size=orders[0].group_size))
        groups = ray.get(feed.results.remote(timeout_s=TIMEOUT_S), timeout=TIMEOUT_S)
        seconds = time.perf_counter() - began
        tables = fetch_groups([group.payload for group in groups], timeout_s=TIMEOUT_S)
        ray.kill(feed)
        return seconds, tables


@contextmanager
def running(config: RunConfig, *, policy_folder: str) -> Iterator[OurRollout]:
    """Services with one policy that no learner changes; all of it ends with the block."""
    quiet_libraries()
    started_ray = start_ray(None)
    with tempfile.TemporaryDirectory() as folder:
        services = start_services(
            config, policy_folder=policy_folder, run_folder=Path(folder), started_ray=started_ray
        )
        try:
            services.wait()
            serve_own_weights(services.engines, timeout_s=TIMEOUT_S)
            rollouts = create_rollouts(config, services.rollout_setup, engines=services.engines)
            yield OurRollout(config=config, services=services, rollouts=rollouts)
        finally:
            services.stop()
