"""Starts and stops the services of a run next to its driver: simulators, engines and buffer; and makes the
set-up by which rollout actors find them."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.engines.client import EngineClient
from actors.engines.vllm_engine import EngineActor
from actors.engines.vllm_settings import HIGH_PRIORITY_ENV
from actors.rollout_setup import RolloutSetup
from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.ray_cluster.placement import PlannedProcess, gpu_share, planned_processes
from cluster.ray_cluster.serve_watchdog import ServeWatchdog
from cluster.ray_cluster.simulator_service import (
    connect_user,
    fast_starting_apps,
    start_simulators,
    stop_simulators,
)
from cluster.ray_cluster.start import actor_on_driver_node
from cluster.workers.engine_pool import EnginePool
from learners.advantages.group_advantages import credit_group
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from rewards.reward_functions import RewardContext
from rewards.scorer import make_scorer
from simulators.task import TaskSource

STOP_TIMEOUT_S = 20.0
MAX_OTHER_CALLS = 1024
"""Concurrent calls of an engine by the driver and by rollout actors that join later, which have a few
each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The processes that rollouts need. Started by `start_services`, ended by `stop`."""

    config: RunConfig
    engines: EnginePool
    buffer: ActorHandle
    rollout_setup: RolloutSetup
    serve_watchdog: ServeWatchdog
    started_ray: bool
    """Whether this process started Ray, and so stops it."""

    def wait(self) -> None:
        """Until the engines have started, too. Raises what an engine's own start raised."""
        self.engines.wait()
        info(f"simulators, buffer and {self.engines.num_wanted} engine(s) are up")

    def stop(self) -> None:
        """Ends all of them; what does not end in time is killed. A cluster that was joined stays as it
        was."""
        self.serve_watchdog.close()
        closing: Any = self.buffer.close.remote()
        self.engines.stop(timeout_s=STOP_TIMEOUT_S)
        ray.wait([closing], timeout=STOP_TIMEOUT_S)
        ray.kill(self.buffer)
        stop_simulators(self.config, and_ray=self.started_ray)


def start_services(config: RunConfig, *, policy_folder: str, run_folder: Path, started_ray: bool) -> Services:
    """Starts everything that rollouts need, and waits until it is up, except for the engines: these start in
    parallel with all that comes before the first weights, unless they share GPUs with learners. `started_ray`
    is what `start_ray` returned.
    """
    with ExitStack() as undo:  # on failure, what was started last ends first
        if started_ray:
            undo.callback(ray.shutdown)
        engines = start_engines(config, policy_folder=policy_folder)
        undo.callback(engines.stop, timeout_s=STOP_TIMEOUT_S)
        serve_watchdog = ServeWatchdog(fast_starting_apps(config))
        undo.callback(serve_watchdog.close)
        start_simulators(config, http=False)
        if not started_ray:
            undo.callback(stop_simulators, config, and_ray=False)
        buffer = create_buffer(config, run_folder=run_folder)
        undo.callback(ray.kill, buffer)
        if 0 < resources(config)["engine"].num_gpus < config.engine.tensor_parallel_size:
            engines.wait()  # vLLM sizes its cache by the GPU's free memory: no learner may be loading there
        rollout_setup = make_rollout_setup(config, policy_folder=policy_folder)
        undo.pop_all()
    return Services(
        config=config,
        engines=engines,
        buffer=buffer,
        rollout_setup=rollout_setup,
        serve_watchdog=serve_watchdog,
        started_ray=started_ray,
    )


def start_engines(config: RunConfig, *, policy_folder: str) -> EnginePool:
    """Begins to start the run's engines."""
    process = resources(config)["engine"]
    # A Ray actor runs up to this many calls at once; vLLM does the queueing.
    max_calls = 2 * config.rollout.num_actors * config.rollout.dialogues_per_actor + MAX_OTHER_CALLS
    create: Any = ray.remote(EngineActor)
    create = create.options(
        num_cpus=process.num_cpus,
        num_gpus=process.num_gpus,
        resources=process.resources,
        runtime_env={"env_vars": HIGH_PRIORITY_ENV},
        max_concurrency=max_calls,
        scheduling_strategy="SPREAD",  # outside the placement group of a Tune trial
    )

    def create_engine(number: int) -> ActorHandle:
        return create.remote(policy_folder, config.engine, config.run.seed + number)

    return EnginePool(
        create_engine,
        num_engines=config.engine.num_engines,
        slots_per_engine=config.engine.max_num_seqs,
        start_timeout_s=config.engine.start_timeout_s,
    )


def make_rollout_setup(config: RunConfig, *, policy_folder: str) -> RolloutSetup:
    """What rollout actors need to find the users and the judge; the engines come with each assignment. Raises
    ValueError if the judge's key is not set."""
    context = RewardContext(
        gammas={gym: config.learner.credit_of(gym).gamma for gym in config.gyms.evaluated},
        max_completion_tokens=config.rollout.max_completion_tokens,
    )
    return RolloutSetup(
        config=config.rollout,
        policy_folder=policy_folder,
        max_tokens=config.engine.max_model_len,
        engine_capacity=config.engine.max_num_seqs * config.engine.num_engines / config.rollout.num_actors,
        connect_engine=partial(EngineClient, (), timeout_s=config.engine.complete_timeout_s),
        open_gyms=config.gyms.open,
        personas=config.simulator.personas,
        connect_user=partial(connect_user, config),
        score=make_scorer(config.reward, context=context, num_processes=config.rollout.num_actors),
        credit=partial(
            credit_group,
            credit_of=config.learner.credit_of,
            masks_truncated=config.learner.truncated == "mask",
            has_gains=config.learner.information_gain != "none",
        ),
    )


def resources(config: RunConfig) -> Mapping[str, PlannedProcess]:
    """The Ray resources of each kind of process, by name."""
    share = gpu_share(config, num_gpus=int(ray.cluster_resources().get("GPU", 0)))
    return {process.name: process for process in planned_processes(config, gpu_share=share)}


def create_buffer(config: RunConfig, *, run_folder: Path) -> ActorHandle:
    """The work source of training, on the driver's node, where the run folder is."""
    sizes = BufferSizes(
        group_size=config.rollout.group_size,
        groups_per_step=config.buffer.groups_per_step,
        max_off_policy_steps=config.buffer.max_off_policy_steps,
        seed=config.run.seed,
        extra_dialogues=config.rollout.extra_dialogues,
    )
    source = TaskSource(
        config.gyms.trained, split="train", seed=config.run.seed, difficulty=config.gyms.difficulty
    )
    return actor_on_driver_node(BufferActor).remote(
        sizes,
        source=source,
        run_folder=run_folder,
        group_timeout_s=config.rollout.group_timeout_s,
    )
