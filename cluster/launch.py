"""What runs beside the driver: Ray itself, the simulated users on Serve, the policy engines, the feeds."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.engine_client import EngineClient
from actors.rollout_actor import RolloutSetup
from actors.trajectory import GroupOrder
from actors.vllm_engine import EngineActor
from actors.vllm_settings import COMES_FIRST
from cluster.config import RunConfig
from cluster.console import quiet_libraries, say
from cluster.machine import PlannedProcess, gpu_share, planned_processes, ray_address
from learners.buffer import BufferSizes
from learners.buffer_actor import BufferActor
from learners.flat import is_flat
from learners.order_list import OrderList
from rewards.reward import RewardContext
from rewards.score import make_scorer
from simulators.connect import connect_users
from simulators.make import open_gyms
from simulators.serve import build_app
from simulators.serve_llm import deploy_llm, llm_url, remove_llm
from simulators.serve_user import ServeUser
from simulators.task import TaskSource
from simulators.user import User

LOCALHOST = "127.0.0.1"
SERVE_PORT = 8000
STOP_TIMEOUT_S = 20.0
DEPLOY_TIMEOUT_S = 120.0
ENVIRONMENT = {
    # An idle OpenMP thread spins a moment, then sleeps: on a small machine all processes share the cores.
    "GOMP_SPINCOUNT": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The processes that rollouts lean on. Made by `start_services`, ended by `stop`."""

    config: RunConfig
    engines: Sequence[ActorHandle]
    buffer: ActorHandle
    rollout_setup: RolloutSetup
    started_ray: bool
    """Whether Ray was started here, and so ends here."""

    def stop(self) -> None:
        """Ends all of them; what does not end in time is killed. Leaves a cluster that was joined as it
        was."""
        stopping: list[Any] = [self.buffer.close.remote(), *(engine.stop.remote() for engine in self.engines)]
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_TIMEOUT_S)
        for actor in (self.buffer, *self.engines):
            ray.kill(actor)
        stop_simulators(self.config, and_ray=self.started_ray)


def start_ray(address: str | None) -> bool:
    """Joins the cluster at `address` or, inside a Ray job, the job's; else starts Ray here. True where it was
    started."""
    os.environ |= ENVIRONMENT
    if ray.is_initialized():
        return False
    ray.init(
        address=address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    return address is None


def start_services(config: RunConfig, *, policy_folder: str, run_folder: Path, started_ray: bool) -> Services:
    """Starts everything that rollouts need, the slow parts at the same time, and waits until it is up.

    `started_ray` is what `start_ray` said.
    """
    started = time.perf_counter()
    engines, starting = start_engines(config, policy_folder=policy_folder)
    start_simulators(config, http=False)
    buffer = create_buffer(config, run_folder=run_folder)
    ray.get(starting, timeout=config.engine.start_timeout_s)
    say(f"simulators, {len(engines)} engine(s) and the buffer are up | {time.perf_counter() - started:.1f}s")
    return Services(
        config=config,
        engines=engines,
        buffer=buffer,
        rollout_setup=make_rollout_setup(config, engines=engines, policy_folder=policy_folder),
        started_ray=started_ray,
    )


def start_engines(config: RunConfig, *, policy_folder: str) -> tuple[list[ActorHandle], list[ray.ObjectRef]]:
    """Engine actors, and what to wait for until they run."""
    process = resources(config)["engine"]
    # A Ray actor's calls run at the same time up to this number; vLLM does the queueing.
    most_calls = 2 * config.rollout.num_actors * config.rollout.dialogues_per_actor + 16
    create: Any = ray.remote(EngineActor)
    create = create.options(
        num_cpus=process.num_cpus,
        num_gpus=process.num_gpus,
        runtime_env={"env_vars": COMES_FIRST},
        max_concurrency=most_calls,
        scheduling_strategy="SPREAD",  # outside the placement group of a Tune trial
    )
    engines: list[ActorHandle] = [
        create.remote(policy_folder, config.engine, config.run.seed + index)
        for index in range(config.engine.num_engines)
    ]
    return engines, [engine.start.remote() for engine in engines]


def app_name(config: RunConfig) -> str:
    """The Serve application of this run's simulated users."""
    return f"simulators-{config.run.name}"


def start_simulators(config: RunConfig, *, http: bool) -> None:
    """Deploys the simulated users. With `http` the rule-based ones also answer on the loopback address.

    In a Tune trial a task outside the trial's placement group does it: Serve's actors have no place there.
    """
    if ray.util.get_current_placement_group() is None:
        return _deploy(config, http)
    task = beside_driver(_deploy)
    patience = sum(llm.start_timeout_s for llm in config.simulator.llms())
    ray.get(task.remote(config, http), timeout=DEPLOY_TIMEOUT_S + patience)


def _deploy(config: RunConfig, http: bool) -> None:
    llms = config.simulator.llms()
    # A proxy on every node: rollout actors find the models behind their own loopback address.
    location = "EveryNode" if llms else "HeadOnly" if http else "NoServer"
    serve.start(
        http_options={"host": LOCALHOST, "port": SERVE_PORT, "location": location},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    # The rules without the tasks: a call brings its scenario with it.
    gyms = open_gyms(config.gyms.preset, config.gyms.constants, {})
    application = build_app(config.simulator, http=http, gyms=gyms)
    serve.run(application, name=app_name(config), route_prefix="/" if http else None)
    for llm in llms:
        say(f"simulator {llm.name}: {llm.model} is being loaded")
        deploy_llm(llm, run=config.run.name)


def stop_simulators(config: RunConfig, *, and_ray: bool) -> None:
    """Takes the simulated users down, and Ray with them where it was started here."""
    if and_ray:
        ray.shutdown()
    else:
        serve.delete(app_name(config))
        for llm in config.simulator.llms():
            remove_llm(llm, run=config.run.name)


def connect_user(config: RunConfig, name: str) -> User:
    """The simulator of this name as a rollout actor calls it; of an empty name: the recipe's mix."""
    handle = serve.get_deployment_handle("Simulator", app_name=app_name(config))
    return connect_users(
        config.simulator,
        rules=ServeUser(handle, config.simulator),
        gyms=open_gyms(config.gyms.preset, config.gyms.constants, {}),
        names=[name] if name else None,
        llm_urls={llm.name: llm_url(llm, run=config.run.name) for llm in config.simulator.llms()},
        num_processes=config.rollout.num_actors,
    )


def create_order_list(orders: Sequence[GroupOrder], *, group_timeout_s: float) -> ActorHandle:
    """A feed of these orders, on the driver's node."""
    return _beside_driver(OrderList).remote(orders, group_timeout_s=group_timeout_s)


def make_rollout_setup(
    config: RunConfig, *, engines: Sequence[ActorHandle], policy_folder: str
) -> RolloutSetup:
    """What rollout actors need to find the engines, the users and the judge. Raises ValueError where the
    judge's key is not set."""
    context = RewardContext(
        gammas={gym: config.learner.credit_of(gym).gamma for gym in config.gyms.evaluated},
        max_completion_tokens=config.rollout.max_completion_tokens,
    )
    return RolloutSetup(
        config=config.rollout,
        policy_folder=policy_folder,
        max_tokens=config.engine.max_model_len,
        engine_places=config.engine.max_num_seqs * config.engine.num_engines / config.rollout.num_actors,
        connect_engine=partial(EngineClient, engines, timeout_s=config.engine.complete_timeout_s),
        open_gyms=partial(open_gyms, config.gyms.preset, config.gyms.constants, config.gyms.data),
        personas=config.simulator.personas,
        connect_user=partial(connect_user, config),
        score=make_scorer(config.reward, context=context, num_processes=config.rollout.num_actors),
    )


def resources(config: RunConfig) -> Mapping[str, PlannedProcess]:
    """What each kind of process asks of Ray, by name."""
    share = gpu_share(config, num_gpus=int(ray.cluster_resources().get("GPU", 0)))
    return {process.name: process for process in planned_processes(config, gpu_share=share)}


def serve_forever(config: RunConfig) -> None:
    """`userrl serve`: hosts the simulated users over HTTP until Ctrl-C."""
    quiet_libraries()
    started_ray = start_ray(ray_address(config))
    try:
        start_simulators(config, http=True)
        say(f"simulated users answer at http://{LOCALHOST}:{SERVE_PORT}/reply (Ctrl-C ends it)")
        while True:
            time.sleep(1)
    finally:
        stop_simulators(config, and_ray=started_ray)


def create_buffer(config: RunConfig, *, run_folder: Path) -> ActorHandle:
    """The feed of training, on the driver's node, where the run folder is."""
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
    return _beside_driver(BufferActor).remote(
        sizes,
        source=source,
        run_folder=run_folder,
        group_timeout_s=config.rollout.group_timeout_s,
        is_flat=partial(
            is_flat,
            credit_of=config.learner.credit_of,
            masks_truncated=config.learner.truncated == "mask",
            has_gains=config.learner.information_gain != "none",
        ),
    )


def beside_driver(work: Callable[..., object], *, num_returns: int | Literal["streaming"] = 1) -> Any:
    """A Ray task on the driver's node, where the files are, outside the placement group of a Tune trial."""
    return ray.remote(work).options(num_cpus=0, num_returns=num_returns, scheduling_strategy=_here())


def _beside_driver(actor: type) -> Any:
    """An actor on the driver's node, where the run folder is."""
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=_here(), max_concurrency=4096)


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
