"""Simulated users on Ray Serve: real replicas on loopback, killed and delayed."""

import asyncio
import dataclasses
import json
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle

from simulators.config import SimulatorConfig
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.serving.app import build_app
from simulators.serving.auth import key_hash
from simulators.serving.llm_proxy import connect_llm_proxy, deploy_llm_proxy, remove_llm_proxy
from simulators.serving.user_client import ServeUser
from simulators.user import SimulatorError, UserCall, UserReply
from simulators.users.rule_user import RuleUser

pytestmark = pytest.mark.slow
PORT = 18463
URL = f"http://127.0.0.1:{PORT}"
KEY = "canary-0b7e5d2c91a44f36"

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Serve's replicas cannot import a test file


def answer(call: UserCall, rng: random.Random) -> UserReply:
    """Does what the question says."""
    if call.question == "raise":
        raise KeyError("no such thing")
    if call.question.startswith("sleep"):
        time.sleep(float(call.question.split()[1]))
    return UserReply(text=f"you said {call.question}", facts={"draw": rng.random()})


def gyms() -> dict[str, Gym]:
    return {"echo": dataclasses.replace(GYMS["function"], name="echo", rule_based_reply=answer)}


def ask(question: str, *, gym: str = "echo", seed: int = 0) -> UserCall:
    return UserCall(gym=gym, scenario={"hidden": 1}, question=question, seed=seed)


@pytest.fixture(scope="module")
def handle() -> Iterator[DeploymentHandle]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(build_app(SimulatorConfig(num_replicas=2), gyms=gyms()), name="simulators", route_prefix="/")
    yield serve.get_deployment_handle("Simulator", "simulators")
    serve.shutdown()
    ray.shutdown()


def serve_actors() -> list[str]:
    """Names in Serve's namespace."""
    actors: list[Any] = list(ray.util.list_named_actors(all_namespaces=True))
    return [actor["name"] for actor in actors if actor["namespace"] == "serve"]


def post(body: dict[str, object], *, path: str = "/reply", key: str = "") -> tuple[int, dict[str, object]]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{URL}{path}", data=json.dumps(body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_a_served_user_says_what_the_same_user_says_in_process(handle: DeploymentHandle):
    calls = [ask(f"question {i}", seed=i) for i in range(100)]
    served = ServeUser(handle, SimulatorConfig())
    replies = await asyncio.gather(*(served.reply(call) for call in calls))
    local = RuleUser(gyms())
    for call, reply in zip(calls, replies, strict=True):
        expected = await local.reply(call)
        assert (reply.text, reply.facts) == (expected.text, expected.facts)
        assert reply.latency_s > 0 and reply.num_retries == 0


async def test_a_user_that_raises_is_a_simulator_error_for_that_call_alone(handle: DeploymentHandle):
    user = ServeUser(handle, SimulatorConfig())
    calls = [user.reply(ask("raise")), user.reply(ask("hello"))]
    bad, good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, SimulatorError) and str(bad) == "echo: KeyError: 'no such thing'"
    assert isinstance(good, UserReply) and good.text == "you said hello"
    with pytest.raises(SimulatorError, match="did you mean 'echo'"):
        await user.reply(ask("hello", gym="ecko"))


async def test_a_slow_user_is_given_up_within_its_time_limit(handle: DeploymentHandle):
    user = ServeUser(handle, SimulatorConfig(timeout_s=0.2, max_retries=1, backoff_s=0.05))
    began = time.monotonic()
    with pytest.raises(SimulatorError, match=r"no reply in 2 tries: TimeoutError: no reply within 0\.2 s"):
        await user.reply(ask("sleep 1"))
    assert time.monotonic() - began < 1.0
    await asyncio.sleep(2.5)  # both replicas sleep on


async def test_a_replica_killed_under_load_loses_no_call_and_falsifies_none(handle: DeploymentHandle):
    # Eight clients, as eight rollout actors are: both replicas have requests in hand at any moment.
    users = [ServeUser(handle, SimulatorConfig(timeout_s=10.0)) for _ in range(8)]
    replicas = [name for name in serve_actors() if "simulators#Simulator#" in name]
    assert len(replicas) == 2

    async def dialogue(name: int) -> list[UserReply]:
        user = users[name % len(users)]
        return [await user.reply(ask(f"sleep 0.003 {name} {turn}")) for turn in range(25)]

    dialogues = asyncio.gather(*(dialogue(name) for name in range(32)))
    await asyncio.sleep(0.5)
    ray.kill(ray.get_actor(replicas[0], namespace="serve"))
    replies = await dialogues
    for name, texts in enumerate([reply.text for reply in one] for one in replies):
        assert texts == [f"you said sleep 0.003 {name} {turn}" for turn in range(25)]
    assert any(reply.num_retries for one in replies for reply in one)


def test_http_answers_and_refuses_in_json(handle: DeploymentHandle):
    status, body = post(
        {"gym": "echo", "scenario": {}, "question": "hello", "history": [["a", "b"]], "seed": 3}
    )
    assert status == 200 and body["text"] == "you said hello"
    assert post({"gym": "echo", "scenario": {}, "question": "raise"}) == (
        502,
        {"detail": "echo: KeyError: 'no such thing'"},
    )
    status, body = post({"gym": "echo", "scenario": {}, "question": "hello", "mood": "good"})
    assert status == 422 and "mood" in json.dumps(body)
    with urllib.request.urlopen(f"{URL}/healthz", timeout=30) as response:
        assert json.load(response) == {"status": "ok"}


def test_requests_without_the_key_are_refused(
    handle: DeploymentHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    keyed = build_app(SimulatorConfig(), gyms=gyms(), expected=key_hash("THE_KEY", host="0.0.0.0"))
    serve.run(keyed, name="keyed", route_prefix="/keyed")
    try:
        body = {"gym": "echo", "scenario": {}, "question": "hello"}
        assert [post(body, path="/keyed/reply", key=key)[0] for key in ("", "wrong", KEY)] == [401, 401, 200]
        status, answer = post({**body, "persona": {"patience": 2}}, path="/keyed/reply", key=KEY)
        assert status == 422 and KEY not in json.dumps(answer)
        assert post({**body, "question": "x" * (2**20 + 2**10)}, path="/keyed/reply", key=KEY)[0] == 413
    finally:
        serve.delete("keyed")


async def test_the_llm_proxy_forwards_requests_to_its_local_serve_proxy(handle: DeploymentHandle) -> None:
    deploy_llm_proxy("test", port=PORT)
    try:
        transport = connect_llm_proxy("test")
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            answer = await client.post("/reply", json={"gym": "echo", "scenario": {}, "question": "hello"})
            assert (answer.status_code, answer.json()["text"]) == (200, "you said hello")
            assert (await client.get("/nowhere")).status_code == 404
    finally:
        remove_llm_proxy("test")
