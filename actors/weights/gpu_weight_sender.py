"""The learner's end of the GPU transports (NCCL, CUDA IPC): vLLM's own trainer side, which calls our engine
actors.

Runs in every learner. Rank 0 connects to the engines and calls them; other ranks only join the gathering of
weights.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_open_port

from actors.engines.protocol import EngineError


class NamedTensors(Protocol):
    """Weights that are gathered one at a time."""

    def shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of each, without gathering."""
        ...

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class GpuWeightSender:
    """Sends weights to all engines, any number of times."""

    def __init__(
        self,
        transport: str,
        *,
        engines: Sequence[ActorHandle],
        workers_per_engine: int,
        weights: NamedTensors,
        rank: int,
        timeout_s: float,
    ):
        """Connects to the engines, on every rank at the same time. Each iteration over `weights` yields the
        policy's current weights."""
        self._client = EngineUpdateCalls(
            engines, transport=transport, workers_per_engine=workers_per_engine, timeout_s=timeout_s
        )
        num_ends = 1 + len(engines) * workers_per_engine
        self._end = WeightTransferTrainerFactory.trainer_init(
            INIT_INFOS[transport](rank, num_ends), client=self._client, source=_Source(weights)
        )

    def send(self, policy_version: int) -> dict[str, float]:
        """The version is live in every engine when rank 0 returns. Rank 0 returns the engines' metrics."""
        self._client.policy_version = policy_version
        self._end.send_weights()
        return self._client.metrics


class EngineUpdateCalls:
    """vLLM's four calls of a weight update, made to all engine actors. Raises `EngineError`."""

    def __init__(
        self, engines: Sequence[ActorHandle], *, transport: str, workers_per_engine: int, timeout_s: float
    ):
        self.policy_version = 0
        """The version that is being sent."""
        self.metrics: dict[str, float] = {}
        """Of the last update, on the slowest engine."""
        self._engines = engines
        self._transport = transport
        self._workers_per_engine = workers_per_engine
        self._timeout_s = timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        def connect(engine: ActorHandle, index: int) -> ray.ObjectRef:
            own = dict(init_info)
            if "rank_offset" in own:  # vLLM counts the workers of one engine; ours are numbered in a row
                own["rank_offset"] += index * self._workers_per_engine
            return engine.connect_learner.remote(self._transport, own)

        self._call_all(connect)

    def start_weight_update(self) -> None:
        self._call_all(lambda engine, _: engine.begin_weights.remote())

    def update_weights(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        data = pickle.dumps(update_info)  # CUDA's handles are of classes that vLLM's own messages refuse
        self._call_all(lambda engine, _: engine.take_weights.remote(data))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        ends = self._call_all(lambda engine, _: engine.end_weights.remote(self.policy_version))
        self.metrics = {key: max(end[key] for end in ends) for key in ends[0]}

    def _call_all(self, call: Callable[[ActorHandle, int], ray.ObjectRef]) -> list[Any]:
        calls = [call(engine, index) for index, engine in enumerate(self._engines)]
        try:
            return ray.get(calls, timeout=self._timeout_s)
        except GetTimeoutError as error:
            text = f"an engine took longer than {self._timeout_s:g} s for its part of a weight update"
            raise EngineError(text) from error


class _Source(WeightSource):
    def __init__(self, weights: NamedTensors):
        self._weights = weights

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(*shape) for shape in self._weights.shapes()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._weights)


def _nccl(rank: int, num_ends: int) -> TrainerInitInfo:
    return NCCLTrainerInitInfo(
        rank=rank,
        master_address=ray.util.get_node_ip_address(),
        master_port=get_open_port(),
        world_size=num_ends,
    )


def _ipc(rank: int, num_ends: int) -> TrainerInitInfo:
    return IPCTrainerInitInfo(rank=rank, packed=True)  # unpacked, the whole model would be in memory twice


INIT_INFOS: dict[str, Callable[[int, int], TrainerInitInfo]] = {"nccl": _nccl, "ipc": _ipc}
"""By transport, what vLLM's trainer side needs to start, from this learner's rank and the number of processes
in the transfer."""
