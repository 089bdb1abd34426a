"""The driver's objects for a run's processes, wired to each other: clients, pools, supervisor, checkpoints,
metrics."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from cluster.config.run_config import RunConfig
from cluster.driver.checkpoint_mirror import mirror_of
from cluster.driver.checkpoints import Checkpoints
from cluster.ray_cluster.simulator_service import scale_simulators
from cluster.run_folder.paths import RunFolder
from cluster.tracking.prometheus import MetricsEndpoint
from cluster.workers.autoscaler import Autoscaler
from cluster.workers.buffer_client import BufferClient
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.play_orders import OrderPlayer
from cluster.workers.rollout_pool import Assignment, RolloutPool
from cluster.workers.services import Services
from cluster.workers.supervisor import Supervisor
from cluster.workers.weight_sync import connect

CLOSE_TIMEOUT_S = 20.0
"""Longest wait of a run that ends for weights on their way."""
MAX_INTERVALS_KEPT = 4
"""Checkpoint intervals whose groups are kept for the replay of new learners."""


class RunParts:
    """Made once the run's processes are up."""

    def __init__(
        self,
        run: RunConfig,
        folder: RunFolder,
        *,
        recipe: str,
        services: Services,
        env_runners: Any,
        learner_group: Any,
        on_rebuild: Callable[[Any], object],
        running: ExitStack,
    ):
        """`recipe` is what checkpoints keep; `on_rebuild` gets the LearnerGroup that replaces a lost one;
        `running` closes the parts when the run ends."""
        self._folder = folder
        engines = services.engines
        self.learners = LearnerPool(
            learner_group,
            max_steps=MAX_INTERVALS_KEPT * run.checkpoint.every_steps,
            on_rebuild=on_rebuild,
        )
        self.weights = connect(self.learners, engines, config=run.engine)
        running.callback(self.weights.close, timeout_s=CLOSE_TIMEOUT_S)
        self.rollouts = RolloutPool(env_runners, engines=engines, group_timeout_s=run.rollout.group_timeout_s)
        self.autoscaler = Autoscaler(
            run,
            folder,
            scale={
                "rollouts": self.rollouts.scale,
                "engines": engines.scale,
                "simulators": partial(scale_simulators, run),
            },
        )
        self.connect_services(run, services)
        self.checkpoints = Checkpoints(
            folder,
            recipe=recipe,
            keep=run.checkpoint.keep,
            learners=self.learners,
            trim_log=lambda before: self.buffer.trim_log(before=before),
            mirror=mirror_of(run),
        )
        running.callback(self.checkpoints.close)
        self.endpoint = MetricsEndpoint(
            run=run.run.name,
            targets=folder.scrape_targets,
            live=lambda: {**self.buffer.metrics(), **self.process_counts()},
        )
        running.callback(self.endpoint.close)

    def connect_services(self, run: RunConfig, services: Services) -> None:
        """From now on groups come from the buffer of these services."""
        self.services = services
        self.buffer = BufferClient(services.buffer, run=run, archive=self._folder.trajectories)
        self.supervisor = Supervisor(
            self.rollouts,
            services.engines,
            deliver_weights=self.weights.deliver,
            training=Assignment(source=services.buffer, group_size=run.rollout.num_dialogues),
            check_learners=self.learners.check_health,
            check_buffer=self.buffer.raise_if_lost,
            poll_scaling=self.autoscaler.poll,
        )
        self.player = OrderPlayer(self.rollouts, self.supervisor)

    def send_weights(self, policy_version: int) -> None:
        """The policy version is live in every engine when this returns. Engine usage counts from here."""
        self.weights.send(policy_version)
        self.finish_sync()
        self.services.engines.usage()

    def finish_sync(self) -> None:
        """Waits until the version that was sent is live in every engine, and its step's slots are free."""
        self.weights.finish()
        self.buffer.finish_release()

    @property
    def is_stable(self) -> bool:
        """Whether the last change of the number of rollout actors or engines has taken effect."""
        return self.rollouts.membership.is_stable and self.services.engines.is_stable

    def process_counts(self) -> dict[str, float]:
        """How many processes run now, and how many engines were replaced so far."""
        return {
            "rollout/num_actors": float(self.rollouts.membership.num_active),
            "engine/num_serving": float(self.services.engines.num_serving),
            "engine/num_lost": float(self.services.engines.num_lost),
        }
