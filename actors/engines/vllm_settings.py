"""Settings of a vLLM engine: its environment variables, its arguments, its stop tokens."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import EngineConfig

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.v1.metrics.loggers import StatLoggerBase


CPU_BATCHED_TOKENS = 8192
"""Prompt tokens that one forward pass takes on CPU."""
CPU_BLOCK_TOKENS = 32
"""Tokens of a KV cache block on CPU, and so the unit of the prefix cache. vLLM's own 128 hold a whole
dialogue of the quick-start; with 32 the engine samples about a fifth more tokens a second. CPU kernels need
multiples of 32."""
HIGH_PRIORITY_ENV = {"RAY_worker_niceness": "0"}
"""Environment of an engine actor: vLLM's core runs before other Ray workers, whose niceness is 15. While one
of them holds its processor the whole batch waits: a fifth of the tokens a second on two cores."""
ACTOR_NICENESS = 15
"""Of the engine actor itself, the core's parent: that of Ray's other workers."""


def set_environment(config: EngineConfig) -> None:
    """Sets vLLM's environment variables; must run before this process imports vllm."""
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(round(config.start_timeout_s)),
        "HF_HUB_OFFLINE": "1",
        # Without this the CPU build puts its one worker into a process of its own: a third more start-up.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Threads are left to the kernel: bound ones would share a core with other processes on it.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.num_threads or max(1, len(os.sched_getaffinity(0)) // 2)),
    }


def is_on_cpu() -> bool:
    """Whether vLLM computes on CPU on this machine. Imports vllm."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def engine_args(model_folder: str, config: EngineConfig, *, seed: int) -> "AsyncEngineArgs":
    """The arguments of `AsyncLLM`. Imports vllm."""
    from vllm import AsyncEngineArgs
    from vllm.config.weight_transfer import WeightTransferConfig

    on_cpu = is_on_cpu()
    return AsyncEngineArgs(
        model=model_folder,
        skip_tokenizer_init=True,
        generation_config="vllm",  # a model's own sampling defaults (top-k, top-p) would change the logprobs
        seed=seed,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend="uni" if config.tensor_parallel_size == 1 else "mp",
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30) if on_cpu else None,
        # On CPU a seeded request whose prompt is split in chunks crashes vLLM: its generator cannot be reset.
        enable_chunked_prefill=not on_cpu,
        max_num_batched_tokens=max(CPU_BATCHED_TOKENS, config.max_model_len) if on_cpu else None,
        enforce_eager=on_cpu,  # compiling for CPU doubles the start and samples no faster
        enable_prefix_caching=True,
        block_size=CPU_BLOCK_TOKENS if on_cpu else None,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend="shared_memory"),
        worker_extension_cls="actors.weights.weight_receiver.WeightReceiver",
        disable_log_stats=True,
    )


def timestamp_logger(on_step: Callable[[], None]) -> "type[StatLoggerBase]":
    """A logger that makes vLLM timestamp every request, and logs nothing: 0.4 % of the CPU time of a token.
    `on_step` is called at each step of vLLM. It replaces vLLM's Prometheus export, which would be there
    otherwise. Imports vllm."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class TimestampLogger(PrometheusStatLogger):
        def __init__(self, *args: object, **kwargs: object):
            """Registers no metric."""

        def record(self, *args: object, **kwargs: object) -> None:
            on_step()

        def log_engine_initialized(self) -> None: ...

    return TimestampLogger


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
