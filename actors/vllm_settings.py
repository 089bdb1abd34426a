"""How one vLLM engine is set up: its environment, its arguments, its stop tokens."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import EngineConfig

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs


CPU_BATCHED_TOKENS = 8192
"""Prompt tokens that one forward pass takes on CPU."""


def set_environment(config: EngineConfig) -> None:
    """Sets what vLLM reads from the environment; must run before this process imports vllm."""
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(round(config.start_timeout_s)),
        "HF_HUB_OFFLINE": "1",
        # Without this the CPU build puts its one worker into a process of its own: a third more start-up.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Threads are left to the kernel: bound ones would share a core with whatever else runs on it.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.num_threads or max(1, len(os.sched_getaffinity(0)) // 2)),
    }


def engine_args(model_folder: str, config: EngineConfig, *, seed: int) -> "AsyncEngineArgs":
    """vLLM's arguments. Imports vllm."""
    from vllm import AsyncEngineArgs
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    return AsyncEngineArgs(
        model=model_folder,
        skip_tokenizer_init=True,
        generation_config="vllm",  # a model's own sampling defaults (top-k, top-p) would bend the logprobs
        seed=seed,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend="uni" if config.tensor_parallel_size == 1 else "mp",
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30) if on_cpu else None,
        # On CPU a seeded request whose prompt is cut in chunks ends vLLM: its generator cannot be set back.
        enable_chunked_prefill=not on_cpu,
        max_num_batched_tokens=max(CPU_BATCHED_TOKENS, config.max_model_len) if on_cpu else None,
        enforce_eager=on_cpu,  # compiling for CPU doubles the start and samples no faster
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend="safetensors_file"),
        worker_extension_cls="actors.weight_receiver.WeightReceiver",
        disable_log_stats=True,
    )


def read_stop_token_ids(model_folder: Path) -> list[int]:
    """The ids that end a completion: `eos_token_id` of generation_config.json and of config.json together."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = model_folder / name
        if file.is_file():
            found = json.loads(file.read_text()).get("eos_token_id")
            ids |= set(found) if isinstance(found, list) else {found} - {None}
    if not ids:
        raise ValueError(
            f"{model_folder}: neither config.json nor generation_config.json names an eos_token_id, so no "
            "completion would ever end; write the id of the token that ends a message into config.json"
        )
    return sorted(ids)
