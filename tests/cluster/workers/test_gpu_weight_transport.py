"""Each weight transport on GPUs: after a sync the engine's logprobs equal the learner's on the same tokens,
with tensor parallelism, too."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from transformers import Qwen3Config, Qwen3ForCausalLM

from actors.config import EngineConfig
from actors.engines.vllm_engine import EngineActor
from cluster.workers.engine_pool import EnginePool
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.weight_sync import WeightSync
from cluster.workers.weight_transport import find_transport
from learners.sft_config import SftConfig
from tests.actors.logprob_agreement import VOCAB_SIZE, learn, logprobs_of, random_ids
from tests.learners.learner_groups import group_config, on_each, start

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(900)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

MOST_MEAN_GAP, MOST_GAP = 0.02, 0.2
"""Nats that bfloat16 may cost; other weights are off by whole nats."""


def write_model(folder: Path, *, tied: bool) -> Path:
    """Of a shape that attention kernels of GPUs take."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        eos_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def own_ray() -> Iterator[None]:
    path = str(Path(__file__).parents[3])
    ray.init("local", include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("transport", "learner_gpus", "engine_gpus", "shards"),
    [
        ("shared_memory", 0.0, 1.0, 1),
        ("shared_memory", 0.0, 2.0, 2),
        ("ipc", 0.5, 0.5, 1),
        ("nccl", 1.0, 1.0, 1),
        ("nccl", 1.0, 2.0, 2),
    ],
)
def test_engine_and_learner_agree_after_every_sync(
    transport: str, learner_gpus: float, engine_gpus: float, shards: int, tied: bool, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < learner_gpus + engine_gpus:
        pytest.skip(f"needs {learner_gpus + engine_gpus:g} GPUs")
    folder = write_model(tmp_path / "policy", tied=tied)
    config = EngineConfig(
        max_model_len=512, dtype="bfloat16", tensor_parallel_size=shards, gpu_memory_utilization=0.3
    )
    create: Any = ray.remote(EngineActor)
    create = create.options(num_cpus=0, num_gpus=engine_gpus, max_concurrency=64)
    engines = EnginePool(
        lambda number: create.remote(str(folder), config, number),
        num_engines=1,
        slots_per_engine=64,
        start_timeout_s=600.0,
    )
    learner_config = group_config(
        folder, num_learners=1, sft=SftConfig(), num_gpus_per_learner=int(learner_gpus > 0)
    )
    learner_config.learners(num_gpus_per_learner=learner_gpus)  # type: ignore[arg-type]
    group = start(learner_config)
    engines.wait()
    engine: Any = engines.running[0]
    learners = LearnerPool(group, max_steps=1)
    assert find_transport(config, learners=learners, engines=[engine]) == transport
    sync = WeightSync(
        learners,
        engines,
        dtype="bfloat16",
        timeout_s=120,
        transport=find_transport(config, learners=learners, engines=[engine]),
        workers_per_engine=shards,
    )
    ids = random_ids(0)
    for version in range(3):
        on_each(group, lambda learner, seed=version: learn(learner._learner._policy, seed=seed))
        sync.send(version)
        sync.finish()
        scores = ray.get(engine.score.remote(np.array(ids, np.int32)), timeout=120)
        said = on_each(group, lambda learner: logprobs_of(learner._learner._policy, ids))[0]
        gaps = np.abs(said - scores)
        assert gaps.mean() < MOST_MEAN_GAP and gaps.max() < MOST_GAP
    group.shutdown()
    engines.stop(timeout_s=60.0)
