"""The API key check of the simulated users' HTTP API, and its request limits."""

import hmac
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from ray import cloudpickle

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.config.run_config import load
from cluster.preflight.checks import check_serve
from simulators.input_limits import MAX_ACTION_CHARS
from simulators.llm_client.client import ChatClient, ChatConfig
from simulators.serving.app import MAX_HISTORY, ReplyRequest, make_ingress
from simulators.serving.auth import MAX_REQUEST_BYTES, MAX_REQUEST_DEPTH, ApiKeyMiddleware, key_hash
from simulators.user import SimulatorError
from tests.fake_endpoint import completion

KEY = "canary-5f3c9e1a7b2d4e60"
VARIABLE = "USERRL_SIMULATOR_KEY"


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, KEY)
    return key_hash(VARIABLE, host="0.0.0.0")


def client(expected: str) -> httpx.AsyncClient:
    """Of an application behind the gate that answers with the length of what it was sent."""
    app = FastAPI()
    app.add_middleware(ApiKeyMiddleware, expected=expected)

    @app.post("/reply")
    async def reply(body: dict[str, Any]) -> dict[str, int]:
        return {"num": len(json.dumps(body))}

    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://gate")


async def test_only_requests_with_the_key_pass(expected: str) -> None:
    async with client(expected) as http:
        answer = await http.post("/reply", json={"a": 1}, headers={"Authorization": f"Bearer {KEY}"})
        assert (answer.status_code, answer.json()) == (200, {"num": 8})
        for headers in (
            {},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": f"Bearer {expected}"},
            {"Authorization": "Bearer \xff\xfe"},
            {"X-API-KEY": KEY},
        ):
            sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            for path in ("/reply", "/docs", "/nowhere"):
                answer = await http.post(path, json={"a": 1}, headers=sent)
                assert answer.status_code == 401, (headers, path)
                assert KEY not in answer.text


async def test_without_a_key_to_ask_for_everybody_is_let_in() -> None:
    async with client("") as http:
        assert (await http.post("/reply", json={"a": 1})).status_code == 200


async def test_keys_are_compared_in_constant_time(expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    digest = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with client(expected) as http:
        await http.post("/reply", json={}, headers={"Authorization": "Bearer wrong"})
        await http.post("/reply", json={})
    assert len(compared) == 2 and all(len(one) == len(other) == 64 for one, other in compared)


async def test_a_request_is_short_and_shallow(expected: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    deep = '{"a":' * (MAX_REQUEST_DEPTH + 1) + "1" + "}" * (MAX_REQUEST_DEPTH + 1)
    async with client(expected) as http:
        long = await http.post("/reply", content=b"[" + b" " * MAX_REQUEST_BYTES, headers=headers)
        assert long.status_code == 413
        bomb = await http.post("/reply", content=deep.encode(), headers=headers)
        assert bomb.status_code == 400 and "nested" in bomb.text


async def test_an_endless_body_is_not_waited_for(expected: str) -> None:
    sent: list[MutableMapping[str, Any]] = []
    num_read = 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": b"x" * 2**16, "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("it was let in")

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    await ApiKeyMiddleware(app, expected=expected)({"type": "http", "headers": headers}, receive, send)
    assert sent[0]["status"] == 413 and num_read == MAX_REQUEST_BYTES // 2**16 + 1
    num_read = 0
    await ApiKeyMiddleware(app, expected=expected)({"type": "http", "headers": []}, receive, send)
    assert sent[2]["status"] == 401 and num_read == 0, "strangers are not read at all"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "simulators.example.org"])
def test_beyond_this_machine_a_key_is_needed_and_its_absence_is_one_line(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["serve", "--simulator.host", host]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"simulator.host={host}: ") and VARIABLE in line
    monkeypatch.setenv(VARIABLE, KEY)
    check_serve(load(None, {"simulator.host": host}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost", "::1"])
def test_on_this_machine_none_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert key_hash(VARIABLE, host=host) == ""


@pytest.mark.parametrize("key", ["short", "x" * 15, "a key with blanks in it", "schlüssel-schlüssel"])
def test_a_weak_key_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(BadInput, match=f"{VARIABLE}: a key is at least 16 ASCII") as refusal:
        check_serve(load(None, {"simulator.host": "0.0.0.0"}))
    assert key not in str(refusal.value)


def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadInput, match="NAME of an environment variable") as refusal:
        load(None, {"simulator.api_key_env": KEY})
    assert KEY not in str(refusal.value)


def test_what_is_deployed_holds_no_key(expected: str) -> None:
    assert KEY not in expected and len(expected) == 64
    packer: Any = cloudpickle
    deployed = packer.dumps(make_ingress(expected))
    assert KEY.encode() not in deployed and expected.encode() in deployed
    assert expected == key_hash(VARIABLE, host="127.0.0.1"), "where it is set, it is asked for here, too"


CALL: dict[str, Any] = {"gym": "function", "scenario": {}, "question": "1 2 3 4"}


@pytest.mark.parametrize(
    "change",
    [
        {"question": "x" * (MAX_ACTION_CHARS + 1)},
        {"history": [["a", "b"]] * (MAX_HISTORY + 1)},
        {"history": [["a", "x" * (MAX_ACTION_CHARS + 1)]]},
        {"persona": {"mood": 0.5}},
        {"persona": {"patience": 2}},
        {"persona": {"patience": float("nan")}},
        {"seed": -1},
        {"seed": 2**63},
        {"gym": "g" * 101},
        {"choice": "shout"},
        {"mood": "good"},
    ],
)
def test_a_request_of_another_form_is_refused(change: dict[str, Any]) -> None:
    ReplyRequest.model_validate({**CALL, "persona": {"patience": 0.5}, "history": [["a", "b"]], "seed": 7})
    with pytest.raises(ValidationError):
        ReplyRequest.model_validate({**CALL, **change})


async def test_an_endpoint_user_sends_the_key_from_its_environment(expected: str) -> None:
    app = FastAPI()
    app.add_middleware(ApiKeyMiddleware, expected=expected)

    @app.post("/llm-run-qwen/v1/chat/completions")
    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        return completion("let in")

    def chat(variable: str) -> ChatClient:
        config = ChatConfig(base_url="http://gate/llm-run-qwen/v1", model="qwen", api_key_env=variable)
        return ChatClient(config, transport=lambda: httpx.ASGITransport(app=app))

    question = [{"role": "user", "content": "hi"}]
    assert (await chat(VARIABLE).complete(question, seed=0)).text == "let in"
    with pytest.raises(SimulatorError, match="status 401"):
        await chat("").complete(question, seed=0)
