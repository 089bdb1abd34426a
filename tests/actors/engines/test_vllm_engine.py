"""The engine with real Ray and vLLM, and a tiny Qwen3 policy with random weights and tied embeddings."""

import asyncio
import gc
import os
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.actor import ActorHandle
from transformers import Qwen3ForCausalLM

from actors.config import EngineConfig
from actors.engines.client import EngineClient
from actors.engines.protocol import CompletionRequest, EngineError, RequestError, Sampling
from actors.engines.vllm_engine import EngineActor
from actors.engines.vllm_settings import HIGH_PRIORITY_ENV
from actors.trajectory import Completion, as_ids
from tests.actors.logprob_agreement import STOP_TOKEN_ID, VOCAB_SIZE, packed, random_model

pytestmark = pytest.mark.slow

MAX_GAP = 0.02
"""Mean absolute difference of logprobs that training tolerates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    engines: list[ActorHandle]
    client: EngineClient
    policy: Qwen3ForCausalLM
    """Version 0, as the engines received it."""
    was_served_early: bool
    """Whether a request was completed before the first weights."""
    early_versions: list[int]
    """Versions of that request's completion, once there were weights."""


def _policy(*, seed: int) -> Qwen3ForCausalLM:
    return random_model(tied=True, seed=seed)


def _request(*, seed: int, length: int = 300, most: int = 64, temperature: float = 1.0) -> CompletionRequest:
    token_ids = [*np.random.default_rng(7).integers(2, VOCAB_SIZE, length).tolist(), 2 + seed % 200]
    sampling = Sampling(temperature=temperature, max_completion_tokens=most)
    return CompletionRequest(token_ids=as_ids(token_ids), messages=(), sampling=sampling, seed=seed)


async def _complete_all(client: EngineClient, requests: list[CompletionRequest]) -> list[Completion]:
    return list(await asyncio.gather(*(client.complete(request) for request in requests)))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, timeout=60))


def _reference_logprobs(policy: Qwen3ForCausalLM, token_ids: list[int], *, temperature: float) -> np.ndarray:
    """Logprobs [num_tokens - 1] of all tokens but the first."""
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs = (policy(ids).logits[0, :-1] / temperature).log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0].numpy()


def _gap(policy: Qwen3ForCausalLM, request: CompletionRequest, completion: Completion) -> float:
    ids = [*request.token_ids, *completion.token_ids]
    reference = _reference_logprobs(policy, ids, temperature=request.sampling.temperature)
    return float(np.abs(reference[len(request.token_ids) - 1 :] - np.asarray(completion.logprobs)).mean())


def _receive(started: Started, policy: Qwen3ForCausalLM, *, version: int) -> None:
    payload = ray.put(packed(policy.named_parameters()))
    ray.get([engine.receive.remote(payload, version) for engine in started.engines], timeout=60)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("policy")
    policy = _policy(seed=0)
    _policy(seed=99).save_pretrained(folder)  # the weights that an engine starts from must never be served
    path = str(Path(__file__).parents[3])
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        config = EngineConfig(max_model_len=512, kv_cache_gib=0.1, num_threads=1)
        actor: Any = ray.remote(EngineActor)
        actor = actor.options(num_cpus=0, max_concurrency=256, runtime_env={"env_vars": HIGH_PRIORITY_ENV})
        engines = [actor.remote(str(folder), config, seed) for seed in (0, 1)]
        ray.get([engine.start.remote() for engine in engines], timeout=300)
        early = engines[0].complete.remote(
            np.array([5, 6], np.int32), max_completion_tokens=4, temperature=1.0, seed=0
        )
        served, _ = ray.wait([early], timeout=1.0)
        payload = ray.put(packed(policy.named_parameters()))
        ray.get([engine.receive.remote(payload, 0) for engine in engines], timeout=60)
        versions = ray.get(early, timeout=60)[2].tolist()
        yield Started(
            engines=engines,
            client=EngineClient(engines, timeout_s=60),
            policy=policy,
            was_served_early=bool(served),
            early_versions=versions,
        )
    finally:
        ray.shutdown()


def test_nothing_is_served_before_the_first_weights(started: Started) -> None:
    assert not started.was_served_early
    assert set(started.early_versions) == {0}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(started: Started, temperature: float) -> None:
    requests = [_request(seed=seed, temperature=temperature) for seed in range(8)]
    completions = _run(_complete_all(started.client, requests))
    gaps = [_gap(started.policy, *pair) for pair in zip(requests, completions, strict=True)]
    assert np.mean(gaps) < MAX_GAP


def test_scores_are_the_learners_logprobs(started: Started) -> None:
    ids = list(_request(seed=3).token_ids)
    reference = _reference_logprobs(started.policy, ids, temperature=1.0)
    for engine in started.engines:
        scores = ray.get(engine.score.remote(np.array(ids, np.int32)), timeout=60)
        assert np.abs(scores - reference).mean() < MAX_GAP


def test_a_completion_ends_with_its_stop_token_or_at_its_limit(started: Started) -> None:
    completions = _run(_complete_all(started.client, [_request(seed=seed, most=200) for seed in range(48)]))
    for completion in completions:
        ids = list(completion.token_ids)
        assert STOP_TOKEN_ID not in ids[:-1]
        assert ids[-1] == STOP_TOKEN_ID or len(ids) == 200
        assert len(ids) == len(completion.logprobs) == len(completion.policy_versions)
    assert any(completion.token_ids[-1] == STOP_TOKEN_ID for completion in completions)


def test_the_seed_alone_decides_what_is_sampled(started: Started) -> None:
    once, again, other = _run(_complete_all(started.client, [_request(seed=seed) for seed in (11, 11, 12)]))
    assert list(once.token_ids) == list(again.token_ids) != list(other.token_ids)


def test_no_more_than_max_num_seqs_are_computed_at_once_and_the_rest_is_queueing(started: Started) -> None:
    client = EngineClient(started.engines[:1], timeout_s=60)

    async def complete(seed: int) -> tuple[float, float]:
        began = time.perf_counter()
        completion = await client.complete(_request(seed=seed, length=20, most=24))
        return time.perf_counter() - began, completion.queue_s

    async def complete_all() -> list[tuple[float, float]]:
        return await asyncio.gather(*(complete(seed) for seed in range(256)))

    began = time.perf_counter()
    waited_s, queue_s = np.transpose(_run(complete_all()))
    duration_s = time.perf_counter() - began
    capacity = EngineConfig().max_num_seqs
    assert waited_s.sum() > capacity * duration_s, "too few requests for this test to show anything"
    assert (waited_s - queue_s).sum() <= 1.01 * capacity * duration_s
    assert (waited_s > queue_s).all() and (queue_s > 0).all()


def test_cancelled_requests_free_the_engine_at_once(started: Started) -> None:
    """More requests than the engine computes at once, finished and then cancelled: the next request does not
    wait for the cancelled ones."""
    client = EngineClient(started.engines[:1], timeout_s=60)
    crowd = [_request(seed=seed, length=20, most=256) for seed in range(160)]

    async def cancel_all() -> float:
        running = [asyncio.ensure_future(client.complete(request)) for request in crowd]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        assert sum(not one.done() for one in running) > EngineConfig().max_num_seqs
        for one in running:
            one.cancel()
        began = time.perf_counter()
        await client.complete(_request(seed=0, length=20, most=4))
        return time.perf_counter() - began

    _run(_complete_all(client, crowd[:1]))  # the prompt is cached from here on
    began = time.perf_counter()
    _run(_complete_all(client, crowd))
    to_their_ends_s = time.perf_counter() - began
    # The minimum of several: other work on the machine only adds to it.
    assert min(_run(cancel_all()) for _ in range(3)) < to_their_ends_s / 4


def test_weights_are_received_in_flight_and_each_token_names_its_version(started: Started) -> None:
    requests = [_request(seed=100 + seed, length=200, most=256) for seed in range(16)]
    policy = _policy(seed=1)

    async def sync_in_flight() -> tuple[list[Completion], float]:
        running = asyncio.ensure_future(_complete_all(started.client, requests))
        await asyncio.sleep(0.2)
        payload = ray.put(packed(policy.named_parameters()))
        received = await asyncio.gather(*(engine.receive.remote(payload, 1) for engine in started.engines))
        return await running, min(report["time/engine_paused_s"] for report in received)

    completions, paused_s, halted = list[Completion](), 0.0, list[Completion]()
    for _ in range(5):  # on a busy machine the weights may come before the first token, or after the last
        completions, paused_s = _run(sync_in_flight())
        halted = [completion for completion in completions if set(completion.policy_versions) == {0, 1}]
        if halted:
            break
        _receive(started, _policy(seed=0), version=0)
    assert halted and all(completion.queue_s > 0.9 * paused_s > 0 for completion in halted)
    old_gaps = []
    for request, completion in zip(requests, completions, strict=True):
        versions = list(completion.policy_versions)
        assert versions == sorted(versions)
        num_old = versions.count(0)
        if num_old:
            old = Completion(
                token_ids=completion.token_ids[:num_old],
                logprobs=completion.logprobs[:num_old],
                policy_versions=completion.policy_versions[:num_old],
            )
            old_gaps.append(_gap(started.policy, request, old))
    assert np.mean(old_gaps) < MAX_GAP

    # The same prompts again: nothing that the old weights cached may be used.
    completions = _run(_complete_all(started.client, requests))
    assert all(set(completion.policy_versions) == {1} for completion in completions)
    gaps = [_gap(policy, *pair) for pair in zip(requests, completions, strict=True)]
    assert np.mean(gaps) < MAX_GAP


def test_a_request_without_a_token_when_weights_change_reads_nothing_that_the_old_ones_cached(
    started: Started,
) -> None:
    """More requests than the engine computes at once, all with one prompt: it is cached when the rest
    starts."""
    engine: Any = started.engines[0]
    client, policy = EngineClient([engine], timeout_s=60), _policy(seed=3)
    requests = [_request(seed=300 + seed, length=300, most=128) for seed in range(160)]
    payload = ray.put(packed(policy.named_parameters()))

    async def sync_in_flight() -> list[Completion]:
        running = asyncio.ensure_future(_complete_all(client, requests))
        await asyncio.sleep(0.2)
        await engine.receive.remote(payload, 5)
        return await running

    def new_ones() -> list[tuple[CompletionRequest, Completion]]:
        completions = _run(sync_in_flight())
        pairs = zip(requests, completions, strict=True)
        return [pair for pair in pairs if set(pair[1].policy_versions) == {5}]

    pairs = new_ones()
    for _ in range(4):  # on a busy machine the weights may come when all have started
        if len(pairs) >= 160 - 2 * EngineConfig().max_num_seqs:
            break
        _receive(started, _policy(seed=0), version=0)
        pairs = new_ones()
    assert len(pairs) >= 160 - 2 * EngineConfig().max_num_seqs
    assert max(_gap(policy, *pair) for pair in pairs) < MAX_GAP


def test_incomplete_weights_are_refused_and_nothing_is_served_until_whole_ones_come(started: Started) -> None:
    policy = _policy(seed=2)
    some = ((name, one) for name, one in policy.named_parameters() if "layers.1.mlp" not in name)
    payload = ray.put(packed(some))
    engine = started.engines[0]
    with pytest.raises(EngineError, match="lack 2 of the policy's parameters"):
        ray.get(engine.receive.remote(payload, 2), timeout=60)
    late = engine.score.remote(np.arange(2, 20, dtype=np.int32))
    assert ray.wait([late], timeout=0.5)[0] == []
    _receive(started, policy, version=2)
    reference = _reference_logprobs(policy, list(range(2, 20)), temperature=1.0)
    assert np.abs(ray.get(late, timeout=60) - reference).mean() < MAX_GAP


def test_a_refused_request_and_a_timeout_are_engine_errors(started: Started) -> None:
    with pytest.raises(RequestError, match="512"):
        _run(started.client.complete(_request(seed=0, length=600)))
    with pytest.raises(RequestError, match="temperature"):
        _run(started.client.complete(_request(seed=0, temperature=3.0)))
    patient = EngineClient(started.engines, timeout_s=0.001)
    with pytest.raises(EngineError, match=r"complete_timeout_s=0\.001"):
        _run(patient.complete(_request(seed=0)))


def test_no_process_survives_a_stop_or_a_kill(started: Started) -> None:
    stopped, killed = started.engines
    pids = ray.get([engine.__ray_call__.remote(_vllm_pids) for engine in started.engines], timeout=60)
    processes = [psutil.Process(pid) for engine_pids in pids for pid in engine_pids]
    assert len(processes) == 2
    ray.get(stopped.stop.remote(), timeout=30)
    ray.kill(killed)
    end = time.monotonic() + 15
    while any(process.is_running() for process in processes) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [process for process in processes if process.is_running()]
    for engine in started.engines:
        with pytest.raises(EngineError):
            _run(EngineClient([engine], timeout_s=10).complete(_request(seed=0)))


def _vllm_pids(engine: EngineActor) -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "VLLM" in " ".join(child.cmdline())]


def test_the_core_has_priority_over_its_actor_and_imports_are_frozen(
    started: Started,
) -> None:
    def inspect(_: EngineActor) -> tuple[int, list[int], int]:
        children = [child.nice() for child in psutil.Process().children()]
        return os.getpriority(os.PRIO_PROCESS, 0), children, gc.get_freeze_count()

    front, children, num_frozen = ray.get(started.engines[0].__ray_call__.remote(inspect), timeout=60)
    assert (front, min(children)) == (15, 0)
    assert num_frozen > 100_000
