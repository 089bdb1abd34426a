"""Models from Hugging Face as simulated users: `ray.serve.llm` hosts each behind its own route.

One Serve application a simulator, so that each scales, fails and ends alone. It speaks OpenAI's chat
protocol; `simulators.chat` is its client, and tries again where a replica died.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

from simulators.config import LlmServeConfig

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig

LOCALHOST = "127.0.0.1"
SERVE_PORT = 8000
MAX_ONGOING_REQUESTS = 256
"""Requests that one replica works on at a time; vLLM batches them."""
TARGET_ONGOING_REQUESTS = 32
"""Requests in the hands of one replica beyond which autoscaling adds another."""
HEALTH_CHECK_PERIOD_S = 5.0
"""A dead replica is noticed, and replaced, within about this time."""
MIN_BATCHED_TOKENS = 8192
"""Tokens that vLLM reads in one pass on CPUs: several prompts, each whole."""
MAX_START_TRIES = 3
"""A model that cannot be loaded is given up after these."""


def app_name(config: LlmServeConfig, *, run: str) -> str:
    """The Serve application that hosts this simulator of this run."""
    return f"llm-{run}-{config.name}"


def llm_url(config: LlmServeConfig, *, run: str, port: int = SERVE_PORT) -> str:
    """Its base URL on any node with a Serve proxy."""
    return f"http://{LOCALHOST}:{port}/{app_name(config, run=run)}/v1"


def deploy_llm(config: LlmServeConfig, *, run: str, port: int = SERVE_PORT) -> str:
    """Hosts the model, waits until it answers, and returns its base URL. Serve's HTTP proxy must be up at
    `port`.

    Raises ValueError where the model cannot be hosted, TimeoutError where it is not up in time.
    """
    if config.model.startswith((".", "/", "~")) and not Path(config.model).expanduser().is_dir():
        raise ValueError(f"simulator={config.name!r}: {config.model} is no folder: give a folder or hub name")
    name = app_name(config, run=run)
    # Serve waits without a limit, and its API has none to set: so a thread waits, and we wait for the thread.
    problems: list[Exception] = []

    def deploy() -> None:
        try:
            serve.run(build_app(config), name=name, route_prefix=f"/{name}")
        except Exception as error:  # raised below, in the thread that asked
            problems.append(error)

    thread = threading.Thread(target=deploy, name=name, daemon=True)
    thread.start()
    thread.join(config.start_timeout_s)
    if thread.is_alive():
        serve.delete(name, _blocking=False)
        raise TimeoutError(
            f"simulator={config.name!r}: {config.model} is not up after {config.start_timeout_s:g} s: see "
            "that the cluster has the CPUs and GPUs of its replicas free, or raise start_timeout_s"
        )
    if problems:
        raise ValueError(f"simulator={config.name!r}: {config.model}: {problems[0]}") from problems[0]
    return llm_url(config, run=run, port=port)


def remove_llm(config: LlmServeConfig, *, run: str) -> None:
    """Ends the model's replicas."""
    serve.delete(app_name(config, run=run))


def build_app(config: LlmServeConfig) -> serve.Application:
    """The application: replicas with the model, and an ingress that takes no CPU of its own."""
    from ray.serve.llm import (
        build_openai_app,  # brings vLLM and torch with it: seconds that most runs need not pay
    )

    ingress = {"num_replicas": 1, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 0}}
    return build_openai_app({"llm_configs": [llm_config(config)], "ingress_deployment_config": ingress})


def llm_config(config: LlmServeConfig) -> "LLMConfig":
    """The model as `ray.serve.llm` wants it, on GPUs or on CPUs."""
    from ray.serve.llm import LLMConfig

    engine: dict[str, Any] = {
        "max_model_len": config.max_model_len,
        # Compact JSON: a weak model would else write blanks between its fields until it is cut off.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    bundle: dict[str, float] = {"CPU": config.num_cpus}
    environment: dict[str, str] = {}
    if config.num_gpus:
        engine["tensor_parallel_size"] = config.num_gpus
        bundles = [bundle | {"GPU": 1}, *({"GPU": 1} for _ in range(config.num_gpus - 1))]
    else:
        engine |= {
            "distributed_executor_backend": "mp",
            "enforce_eager": True,
            # A prompt read in pieces rewinds the random source of a seeded request, which ends the engine
            # on CPUs ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(config.max_model_len, MIN_BATCHED_TOKENS),
        }
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
            "OMP_NUM_THREADS": str(config.num_cpus),
            # vLLM would bind its threads to the same first cores in every replica.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        bundles = [bundle]
    return LLMConfig(
        model_loading_config={"model_id": config.name, "model_source": config.model},
        engine_kwargs=engine,
        placement_group_config={"bundles": bundles},
        runtime_env={"env_vars": environment},
        deployment_config=_deployment(config),
        log_engine_metrics=False,
    )


def _deployment(config: LlmServeConfig) -> dict[str, Any]:
    most = config.max_replicas or config.num_replicas
    options: dict[str, Any] = {
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "max_constructor_retry_count": MAX_START_TRIES,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "ray_actor_options": {"num_cpus": 0},  # the bundle holds the replica's CPUs
    }
    if most == config.num_replicas:
        return options | {"num_replicas": config.num_replicas}
    return options | {
        "autoscaling_config": {
            "min_replicas": config.num_replicas,
            "max_replicas": most,
            "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
        }
    }
