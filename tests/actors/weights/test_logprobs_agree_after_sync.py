"""After every kind of weight sync the engine's logprobs equal the learner's on the same tokens: vLLM on CPU,
random policies with tied and untied embeddings, with and without adapters."""

import copy
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.actor import ActorHandle

from actors.config import EngineConfig
from actors.engines.protocol import EngineError
from actors.engines.vllm_engine import EngineActor
from learners.model.policy import Policy, load_policy
from learners.model.weight_export import WeightExport
from learners.model.weight_payload import pack_weights
from tests.actors.logprob_agreement import learn, logprobs_of, random_ids, write_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

LORA_RANK = {"tied": 0, "untied": 4}
"""Kinds of policy, and the rank of their adapters."""
MOST_MEAN_GAP, MOST_GAP = 1e-4, 1e-3
"""Nats between two ways of computing the same float32 numbers; other weights are off by whole nats."""
TIMEOUT_S = 120


def assert_agree(learner: np.ndarray, engine: Any) -> None:
    gaps = np.abs(learner - engine)
    assert gaps.mean() < MOST_MEAN_GAP and gaps.max() < MOST_GAP


def assert_serves(engine: ActorHandle, policy: Policy) -> None:
    """The engine's logprobs of prompts and of completions equal the policy's."""
    prompts = [random_ids(seed) for seed in range(8)]
    scores = ray.get([engine.score.remote(np.array(ids, np.int32)) for ids in prompts], timeout=TIMEOUT_S)
    completions = ray.get([complete(engine, ids, most=32) for ids in prompts], timeout=TIMEOUT_S)
    for prompt, score, (sampled, logprobs, _, _) in zip(prompts, scores, completions, strict=True):
        learner = logprobs_of(policy, [*prompt, *sampled.tolist()])
        assert_agree(learner[: len(score)], score)
        assert_agree(learner[len(score) :], logprobs)


def complete(engine: ActorHandle, ids: list[int], *, most: int) -> Any:
    return engine.complete.remote(
        np.array(ids, np.int32), max_completion_tokens=most, temperature=1.0, seed=ids[-1]
    )


def payload_of(policy: Policy) -> np.ndarray:
    weights = WeightExport(policy)
    return pack_weights(weights.shapes(), weights)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return {kind: write_model(tmp_path_factory.mktemp(kind), tied=kind == "tied") for kind in LORA_RANK}


@pytest.fixture(scope="module")
def engines(folders: Mapping[str, str]) -> Iterator[Mapping[str, ActorHandle]]:
    path = str(Path(__file__).parents[3])
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    config = EngineConfig(max_model_len=512, kv_cache_gib=0.1, num_threads=1)
    create: Any = ray.remote(EngineActor)
    create = create.options(num_cpus=0, max_concurrency=256)
    engines = {kind: create.remote(folder, config, 0) for kind, folder in folders.items()}
    ray.get([engine.start.remote() for engine in engines.values()], timeout=300)
    yield engines
    ray.get([engine.stop.remote() for engine in engines.values()], timeout=30)
    ray.shutdown()


@pytest.fixture(params=LORA_RANK)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def policy(kind: str, folders: Mapping[str, str]) -> Policy:
    return load_policy(
        folders[kind],
        temperature=1.0,
        dtype=torch.float32,
        recompute_activations=False,
        lora_rank=LORA_RANK[kind],
    )


def test_every_update_by_file_serves_the_learners_policy(
    kind: str, policy: Policy, engines: Mapping[str, ActorHandle]
) -> None:
    for version in range(3):
        learn(policy, seed=version)
        ray.get(engines[kind].receive.remote(payload_of(policy), version), timeout=TIMEOUT_S)
        assert_serves(engines[kind], policy)


def test_running_requests_have_the_old_logprobs_before_and_the_new_ones_after_an_update(
    kind: str, policy: Policy, engines: Mapping[str, ActorHandle]
) -> None:
    engine = engines[kind]
    learn(policy, seed=10)
    ray.get(engine.receive.remote(payload_of(policy), 10), timeout=TIMEOUT_S)
    prompts = [random_ids(seed, length=50) for seed in range(16)]
    running = [complete(engine, ids, most=400) for ids in prompts]
    ray.wait(running, timeout=0.2)
    before = copy.deepcopy(policy)
    learn(policy, seed=11)
    ray.get(engine.receive.remote(payload_of(policy), 11), timeout=TIMEOUT_S)
    num_old = 0
    for prompt, (sampled, logprobs, versions, _) in zip(
        prompts, ray.get(running, timeout=TIMEOUT_S), strict=True
    ):
        first_new = int((versions == 10).sum())
        assert (versions[:first_new] == 10).all() and (versions[first_new:] == 11).all()
        if first_new:
            num_old += first_new
            ids = [*prompt, *sampled[:first_new].tolist()]
            assert_agree(logprobs_of(before, ids)[len(prompt) - 1 :], logprobs[:first_new])
    assert num_old
    assert_serves(engine, policy)


def test_the_four_calls_of_a_gpu_transport_serve_the_learners_policy(
    kind: str, policy: Policy, engines: Mapping[str, ActorHandle], tmp_path: Path
) -> None:
    """With the transport that a CPU has: connect, begin, take, end."""
    engine = engines[kind]
    for version in (20, 21):
        learn(policy, seed=version)
        file = tmp_path / "weights"
        file.write_bytes(payload_of(policy).tobytes())
        ray.get(engine.connect_learner.remote("shared_memory", {}), timeout=TIMEOUT_S)
        ray.get(engine.begin_weights.remote(), timeout=TIMEOUT_S)
        late = engine.score.remote(np.array(random_ids(0), np.int32))
        assert ray.wait([late], timeout=0.3)[0] == []
        ray.get(engine.take_weights.remote(pickle.dumps({"path": str(file)})), timeout=TIMEOUT_S)
        ray.get(engine.end_weights.remote(version), timeout=TIMEOUT_S)
        assert_agree(logprobs_of(policy, random_ids(0)), ray.get(late, timeout=TIMEOUT_S))
        assert_serves(engine, policy)


def test_an_update_that_was_interrupted_is_restarted_by_the_next_learner(
    kind: str, policy: Policy, engines: Mapping[str, ActorHandle], tmp_path: Path
) -> None:
    engine, file = engines[kind], tmp_path / "part"
    learn(policy, seed=30)
    weights = WeightExport(policy)
    part = [shape for shape in weights.shapes() if "up_proj" not in shape[0]]  # vLLM joins it to gate_proj
    names = {name for name, _, _ in part}
    file.write_bytes(pack_weights(part, ((name, one) for name, one in weights if name in names))[0].tobytes())
    ray.get(engine.connect_learner.remote("shared_memory", {}), timeout=TIMEOUT_S)
    ray.get(engine.begin_weights.remote(), timeout=TIMEOUT_S)
    ray.get(engine.take_weights.remote(pickle.dumps({"path": str(file)})), timeout=TIMEOUT_S)
    test_the_four_calls_of_a_gpu_transport_serve_the_learners_policy(kind, policy, engines, tmp_path)


def test_a_transport_that_needs_a_gpu_is_refused_in_one_line(engines: Mapping[str, ActorHandle]) -> None:
    with pytest.raises(EngineError, match=r"transport morse: .*Invalid weight transfer backend: morse"):
        ray.get(engines["tied"].connect_learner.remote("morse", {}), timeout=TIMEOUT_S)
