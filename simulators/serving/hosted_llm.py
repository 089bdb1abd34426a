"""Hosting of Hugging Face models as simulated users through `ray.serve.llm`, each on its own route.

One Serve application per simulator, so that each scales, fails and ends independently. The protocol is
OpenAI's chat API; its client, `simulators.llm_client.client`, retries if a replica died.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

from simulators.config import LlmServeConfig
from simulators.serving.auth import ApiKeyMiddleware

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig

LOCALHOST = "127.0.0.1"
SERVE_PORT = 8000
MAX_ONGOING_REQUESTS = 256
"""Requests that one replica works on at a time; vLLM batches them."""
TARGET_ONGOING_REQUESTS = 32
"""Ongoing requests per replica above which autoscaling adds one."""
HEALTH_CHECK_PERIOD_S = 5.0
"""A dead replica is detected and replaced within about this time."""
MIN_BATCHED_TOKENS = 8192
"""Tokens that vLLM reads in one pass on CPUs: several prompts, each whole."""
MAX_START_TRIES = 3
"""Attempts to load a model before the deployment fails."""
MAX_PROMPT_BYTES = 4 * 2**20
"""Limit of one request, if a key is required."""


def app_name(config: LlmServeConfig, *, run: str) -> str:
    """The Serve application that hosts this simulator of this run."""
    return f"llm-{run}-{config.name}"


def llm_url(config: LlmServeConfig, *, run: str, port: int = SERVE_PORT) -> str:
    """The model's base URL on any node with a Serve proxy."""
    return f"http://{LOCALHOST}:{port}/{app_name(config, run=run)}/v1"


def deploy_llm(
    config: LlmServeConfig,
    *,
    run: str,
    port: int = SERVE_PORT,
    resources: Mapping[str, float] | None = None,
    expected: str = "",
) -> str:
    """Hosts the model, waits until it answers, and returns its base URL. Serve's HTTP proxy must be up at
    `port`. `resources` are custom Ray resources of each replica; `expected` is the hash of the required key,
    see simulators/serving/auth.py.

    Raises ValueError if the model cannot be hosted, TimeoutError if it is not up in time.
    """
    if config.model.startswith((".", "/", "~")) and not Path(config.model).expanduser().is_dir():
        raise ValueError(f"simulator={config.name!r}: {config.model} is no folder: give a folder or hub name")
    name = app_name(config, run=run)
    # `serve.run` waits without a timeout: it runs in a thread, which is joined with one.
    problems: list[Exception] = []

    def deploy() -> None:
        try:
            application = build_app(config, resources=resources, expected=expected)
            serve.run(application, name=name, route_prefix=f"/{name}")
        except Exception as error:  # raised below, in the calling thread
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
    """Deletes the model's Serve application."""
    serve.delete(app_name(config, run=run))


def build_app(
    config: LlmServeConfig, *, resources: Mapping[str, float] | None = None, expected: str = ""
) -> serve.Application:
    """The application: replicas with the model, and an ingress that reserves no CPU; it requires the key with
    the hash `expected`, if any."""
    from ray.serve.llm import (
        build_openai_app,  # imports vLLM and torch, which takes seconds
    )

    ingress = {"num_replicas": 1, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 0}}
    model = llm_config(config, resources=resources)
    if expected:
        return _with_key(model, options=ingress, expected=expected)
    return build_openai_app({"llm_configs": [model], "ingress_deployment_config": ingress})


def _with_key(model: "LLMConfig", *, options: Mapping[str, Any], expected: str) -> serve.Application:
    """The application of `build_openai_app` with the key check, which it cannot add itself."""
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.llm._internal.serve.core.ingress.ingress import init
    from ray.serve.llm import build_llm_deployment
    from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

    face = init()
    face.add_middleware(ApiKeyMiddleware, expected=expected, most_bytes=MAX_PROMPT_BYTES)
    others = OpenAiIngress.get_deployment_options([model])
    ingress: Any = make_fastapi_ingress(OpenAiIngress, app=face)
    deployment: Any = serve.deployment(ingress, **{**others, **options})
    return deployment.bind(
        llm_deployments={model.model_id: build_llm_deployment(model)},
        model_cards={model.model_id: to_model_metadata(model.model_id, model)},
        lora_paths={},
    )


def llm_config(config: LlmServeConfig, *, resources: Mapping[str, float] | None = None) -> "LLMConfig":
    """The model's config for `ray.serve.llm`, on GPUs or CPUs, on nodes with `resources`."""
    from ray.serve.llm import LLMConfig

    engine: dict[str, Any] = {
        "max_model_len": config.max_model_len,
        # Compact JSON: a weak model may otherwise write blanks between its fields until it is cut off.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    bundle: dict[str, float] = {"CPU": config.num_cpus, **(resources or {})}
    environment: dict[str, str] = {}
    if config.num_gpus:
        engine["tensor_parallel_size"] = config.num_gpus
        others = {"GPU": 1, **(resources or {})}
        bundles = [bundle | {"GPU": 1}, *(others for _ in range(config.num_gpus - 1))]
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
            # Else vLLM binds its threads to the same first cores in every replica.
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
