"""Receiver of weights inside vLLM's worker processes, as a backend of vLLM's own weight transfer.

vLLM calls `start_weight_update`, `update_weights` and `finish_weight_update` of a transfer engine by name.
Ours, "shared_memory", reads a file on this machine; "nccl" and "ipc" are vLLM's own.
"""

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from torch import nn
from vllm.config import VllmConfig, WeightTransferConfig, set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker

LoadWeights = Callable[[Iterable[tuple[str, torch.Tensor]]], set[str]]
"""Hugging Face names and tensors in, vLLM's names of the loaded parameters out."""


@dataclass
class FileInit(WeightTransferInitInfo):
    """A file needs no rendezvous."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """One update."""

    path: str
    """A safetensors file with Hugging Face names, readable by every worker; it may be deleted afterwards."""


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):
    """Loads a whole model from a file through vLLM's layerwise reload, a tied `lm_head` included."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ):
        super().__init__(config, vllm_config, device, model)
        # Named before any reload unties what is tied: a tied lm_head counts once, under the embedding's name.
        self._names = {name for name, _ in model.named_parameters()}
        # What an interrupted update had loaded would count as loaded in the next one.
        self._is_open = False

    def init_transfer_engine(self, init_info: FileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        if self._is_open:
            finalize_layerwise_reload(self.model, self.model_config)
        self._is_open = True
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # Not the base's: it synchronizes an accelerator, which a CPU build lacks. Loading here blocks.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Loads the file. Raises ValueError if it lacks parameters: vLLM itself would keep the old ones."""
        load_weights = cast(LoadWeights, self.model.load_weights)
        with safe_open(update_info.path, framework="pt") as file:
            names = list(file.keys())
            missing = self._names - load_weights((name, file.get_tensor(name)) for name in names)
        if missing:
            raise ValueError(
                f"the received weights lack {len(missing)} of the policy's parameters, for example "
                f"{min(missing)}: send the whole state dict"
            )

    def finish_weight_update(self) -> None:
        self._is_open = False
        finalize_layerwise_reload(self.model, self.model_config)
        # A tied lm_head loads nothing itself, so the reload leaves its prepacked CPU matrix as it was:
        # logprobs would be those of the old weights while nothing fails.
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        pass


class WeightReceiver:
    """vLLM's `worker_extension_cls`: methods that every worker has besides vLLM's own."""

    def load_weight_file(self, path: str) -> None:
        """A whole update by `FileTransfer`, in one call instead of three: each is a round trip to every
        worker while requests are paused."""
        worker = cast("Worker", self)
        worker.start_weight_update()
        worker.update_weights({"path": path})
        worker.finish_weight_update()

    def take_weights(self, update_info: bytes) -> None:
        """vLLM's `update_weights`; pickled by our own learner, since it may hold CUDA's handles."""
        cast("Worker", self).update_weights(pickle.loads(update_info))

    def use_transport(self, backend: str, init_info: dict[str, Any]) -> None:
        """Receives weights by `backend` from now on; `init_info` is its own. Called again after a learner was
        replaced: an unfinished update of the previous one is dropped."""
        worker = cast("Worker", self)
        assert worker.weight_transfer_engine is not None and worker.device is not None
        worker.weight_transfer_engine.shutdown()
        worker._weight_update_active = False
        with set_current_vllm_config(worker.vllm_config):
            finalize_layerwise_reload(worker.model_runner.get_model(), worker.vllm_config.model_config)
        worker.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
            WeightTransferConfig(backend=backend),
            worker.vllm_config,
            worker.device,
            worker.model_runner.get_model(),
        )
        worker.init_weight_transfer_engine(init_info)


WeightTransferEngineFactory.register_engine("shared_memory", FileTransfer)
