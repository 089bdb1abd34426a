"""Start of Ray: joins a running cluster or starts a local one; pins actors to the driver's node."""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.nodes import NodesConfig
from cluster.console.log import info
from cluster.ray_cluster.auth_token import provide_token
from cluster.ray_cluster.encrypted_env import SEALED, SETUP_HOOK
from cluster.ray_cluster.loopback import as_it_listens, on_loopback
from cluster.ray_cluster.ray_internals import disable_auto_init

ENVIRONMENT = {
    # Raylets end what a dead worker leaves behind: vLLM's core would outlive its engine, with its memory.
    "RAY_process_group_cleanup_enabled": "1",
    # An idle OpenMP thread spins a moment, then sleeps: on a small machine all processes share the cores.
    "GOMP_SPINCOUNT": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def start_ray(address: str | None, *, nodes: NodesConfig | None = None) -> bool:
    """Joins the cluster at `address` or, inside a Ray job, the job's; else starts Ray here, which offers all
    of `nodes`, listens on loopback only and asks for a token. True where it was started."""
    os.environ |= ENVIRONMENT
    disable_auto_init()  # a call to Ray after its shutdown must not start it again
    if ray.is_initialized():
        return False
    runtime_env: dict[str, Any] = {"env_vars": ENVIRONMENT}
    if SEALED in os.environ:
        runtime_env["worker_process_setup_hook"] = SETUP_HOOK
    init = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    offered = (nodes or NodesConfig()).offered
    if address:
        with as_it_listens(address):
            init(address=address)
        if absent := sorted(offered.keys() - ray.cluster_resources().keys()):
            info(f"no node offers {', '.join(absent)} yet: what belongs there waits for one")
        return False
    provide_token()
    with on_loopback():
        init(address="local", include_dashboard=False, resources=offered)
    return True


def beside_driver(work: Callable[..., object], *, num_returns: int | Literal["streaming"] = 1) -> Any:
    """A Ray task on the driver's node, where the files are, outside the placement group of a Tune trial."""
    return ray.remote(work).options(num_cpus=0, num_returns=num_returns, scheduling_strategy=_here())


def actor_beside_driver(actor: type, *, max_concurrency: int = 4096) -> Any:
    """The same for a Ray actor."""
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=_here(), max_concurrency=max_concurrency)


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
