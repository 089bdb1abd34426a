"""Transports of weights from learners to engines, and the choice among them by the GPUs of both.

A transport is one entry of `TRANSPORTS`: it sends a policy version, and returns references that are done once
that version is live in the engines.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from actors.config import EngineConfig, WeightTransport
from cluster.workers.learner_pool import LearnerPool

ASK_TIMEOUT_S = 60.0
"""Longest wait for an engine to name its GPUs."""

Sent = tuple[dict[ActorHandle, ray.ObjectRef], dict[str, float]]
"""For each engine a reference to what loading cost, done once it has loaded; and what sending cost so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRoute:
    """The sender, and how the weights travel."""

    learners: LearnerPool
    transport: WeightTransport = "shared_memory"
    dtype: str
    workers_per_engine: int = 1

    def send(self, policy_version: int, *, engines: Sequence[ActorHandle]) -> Sent:
        """Blocks no longer than the learners are needed."""
        return TRANSPORTS[self.transport](self, policy_version, engines)


def find_transport(
    config: EngineConfig, *, learners: LearnerPool, engines: Sequence[ActorHandle]
) -> WeightTransport:
    """The recipe's transport, or the fastest that works. Raises `ValueError` if the recipe's cannot work."""
    asked = [engine.__ray_call__.remote(gpus_here) for engine in engines]
    return choose(
        config.weight_transport,
        learner_gpus=learners.ask(gpus_here),
        engine_gpus=ray.get(asked, timeout=ASK_TIMEOUT_S),
    )


def choose(
    wanted: str, *, learner_gpus: Sequence[Sequence[str]], engine_gpus: Sequence[Sequence[str]]
) -> WeightTransport:
    """`wanted`, or for "auto" the fastest that works. Each learner's and each engine's GPUs, rank 0 first.

    CUDA IPC needs a learner on every engine's GPU. NCCL needs all its ends, learner 0 and the engines'
    workers, on GPUs of their own. Example: one learner on GPU a and one engine on GPU b give "nccl".
    """
    learning = {gpu for gpus in learner_gpus for gpu in gpus}
    sampling = [gpu for gpus in engine_gpus for gpu in gpus]
    ends = [*learner_gpus[0], *sampling]
    problems: dict[str, str] = {
        "ipc": "" if learning.issuperset(sampling) else "a learner on the GPU of every engine",
        "nccl": "" if len(set(ends)) == len(ends) else "learner 0 and every engine on a GPU of their own",
        "shared_memory": "",
    }
    if not all(learner_gpus) or not all(engine_gpus):
        problems |= {"ipc": "GPUs for learners and engines", "nccl": "GPUs for learners and engines"}
    if problems.get(wanted):
        raise ValueError(
            f"engine.weight_transport={wanted} needs {problems[wanted]}; they run on {_listed(learner_gpus)} "
            f"and {_listed(engine_gpus)}: take auto, or give them other GPUs"
        )
    names: tuple[WeightTransport, ...] = ("ipc", "nccl", "shared_memory")
    return next(name for name in names if not problems[name] and wanted in (name, "auto"))


def gpus_here(actor: object) -> list[str]:
    """The GPUs that Ray gave to this process, by node and number; for `__ray_call__`."""
    context = ray.get_runtime_context()
    return [f"{context.get_node_id()}/{gpu}" for gpu in context.get_accelerator_ids().get("GPU", [])]


def _listed(gpus: Sequence[Sequence[str]]) -> str:
    return ", ".join("+".join(one) or "CPU" for one in gpus)


def _by_object_store(route: WeightRoute, policy_version: int, engines: Sequence[ActorHandle]) -> Sent:
    """One payload of bytes by reference. Each engine's node fetches it once, and copies it into memory that
    vLLM's processes share."""
    payload, cost = route.learners.weights(dtype=route.dtype)
    return {engine: engine.receive.remote(payload, policy_version) for engine in engines}, cost


def _from_gpu(route: WeightRoute, policy_version: int, engines: Sequence[ActorHandle]) -> Sent:
    """The learners drive the engines themselves, and train on right after. If the engines are not those of
    the last send, the GPU group is rebuilt."""
    start = time.perf_counter()
    loading = route.learners.send_weights(
        engines,
        transport=route.transport,
        workers_per_engine=route.workers_per_engine,
        dtype=route.dtype,
        policy_version=policy_version,
    )
    live = ray.put(loading)
    return dict.fromkeys(engines, live), {"time/send_weights_s": time.perf_counter() - start}


TRANSPORTS: Mapping[WeightTransport, Callable[[WeightRoute, int, Sequence[ActorHandle]], Sent]] = {
    "shared_memory": _by_object_store,
    "nccl": _from_gpu,
    "ipc": _from_gpu,
}
