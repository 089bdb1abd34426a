"""CPU and GPU placement: what this machine has, what each kind of process of a run requests, and which
processes share GPUs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cluster.config.run_config import RunConfig

NODE_SHARE = 0.001
"""What one process takes of a node's custom resource: a node that offers 1 has room for a thousand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """CPUs and GPUs that processes on this machine may use."""

    num_cpus: int
    num_gpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedProcess:
    """One kind of process of a run."""

    name: str
    count: int
    num_cpus: float
    """CPUs that Ray reserves for each; small, since the stages run one after the other on the same cores."""
    num_gpus: float
    """GPUs of each."""
    resources: Mapping[str, float]
    """Custom Ray resources of each, from `ray.nodes`: they determine its node."""
    job: str


def ray_address(config: RunConfig) -> str | None:
    """The cluster to join: the config's, or that of the current Ray job; None to start Ray on this
    machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS")


def this_machine() -> Machine:
    """Counts CPUs by affinity and cgroup, GPUs by environment and device files."""
    num_cpus = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.exists():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            num_cpus = max(1, min(num_cpus, int(quota) // int(period)))
    return Machine(num_cpus=num_cpus, num_gpus=_count_gpus())


def has_cuda() -> bool:
    """Whether the installed torch, and with it vLLM, is built for GPUs."""
    return not version("torch").endswith("+cpu")


def _count_gpus() -> int:
    if not has_cuda():
        return 0  # no installed package can use a GPU
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return sum(path.name[len("nvidia") :].isdecimal() for path in Path("/dev").glob("nvidia*"))


def num_gpu_users(config: RunConfig) -> int:
    """Learners and engine shards that compute on a GPU."""
    num_shards = config.engine.num_engines * config.engine.tensor_parallel_size if has_cuda() else 0
    return config.learner.num_learners * config.learner.num_gpus_per_learner + num_shards


def gpu_share(config: RunConfig, *, num_gpus: int) -> float:
    """GPUs of each learner and engine shard: 1, or 0.5 if they must share `num_gpus`. On separate nodes
    nothing is shared, however few GPUs an autoscaled cluster has at the moment."""
    return 1.0 if num_gpu_users(config) <= num_gpus or are_apart(config) else 0.5


def are_apart(config: RunConfig) -> bool:
    """Whether engines and learners run on different nodes."""
    return config.ray.nodes.engine != config.ray.nodes.learner


def node_resources(nodes: str | None) -> dict[str, float]:
    """Resources that place a process on these nodes; empty if `nodes` is None: any node will do."""
    return {nodes: NODE_SHARE} if nodes else {}


def planned_processes(config: RunConfig, *, gpu_share: float) -> list[PlannedProcess]:
    """Every process of the run except Ray's own, in the order of the data flow."""
    nodes, rollout, engine, learner = config.ray.nodes, config.rollout, config.engine, config.learner
    engine_gpus = gpu_share * engine.tensor_parallel_size * has_cuda()
    learner_gpus = gpu_share * learner.num_gpus_per_learner
    users = config.simulator
    dialogues = f"{rollout.dialogues_per_actor} dialogues at a time"
    sequences = f"vLLM, {engine.max_num_seqs} sequences at a time"
    rows = (
        ("driver", 1, 0, 0, None, "the loop, the buffer, W&B; holds no token"),
        (
            "simulator",
            users.num_replicas,
            users.num_cpus_per_replica,
            0,
            nodes.simulator,
            "simulated users, on Ray Serve",
        ),
        ("rollout actor", rollout.num_actors, rollout.cpus_per_actor, 0, nodes.rollout, dialogues),
        ("engine", engine.num_engines, 0.25, engine_gpus, nodes.engine, sequences),
        ("learner", learner.num_learners, 0.25, learner_gpus, nodes.learner, "SFT and GRPO updates"),
    )
    return [
        PlannedProcess(
            name=name, count=count, num_cpus=cpus, num_gpus=gpus, resources=node_resources(where), job=job
        )
        for name, count, cpus, gpus, where, job in rows
    ]
