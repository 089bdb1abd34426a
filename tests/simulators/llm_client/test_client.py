"""The chat client against a real server on loopback with faults on demand."""

import asyncio
import io
import logging
import pickle
import time
import traceback
from email.utils import formatdate
from typing import Any

import pytest
from pydantic import ValidationError

from simulators.llm_client.client import ChatClient, ChatConfig, retry_after_s
from simulators.user import Failure, SimulatorError
from tests.fake_endpoint import Endpoint, completion, serve_endpoint

KEY = "sk-loopback-0123456789"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPBACK_KEY", KEY)


def chat_to(endpoint: Endpoint, **settings: Any) -> ChatClient:
    fast = {"api_key_env": "LOOPBACK_KEY", "timeout_s": 5.0, "backoff_s": 0.001, "max_retries": 2}
    return ChatClient(ChatConfig(base_url=endpoint.url, model="any", **{**fast, **settings}))


async def failure_of(chat: ChatClient) -> SimulatorError:
    with pytest.raises(SimulatorError) as error:
        await chat.complete(ASK, seed=1)
    await chat.close()
    return error.value


async def test_a_request_carries_model_seed_sampling_and_schema():
    async with serve_endpoint(["hi"]) as endpoint:
        chat = chat_to(endpoint, temperature=0.25, max_tokens=17)
        reply = await chat.complete(ASK, seed=5, schema=SCHEMA)
        await chat.close()
    assert (reply.text, reply.model, reply.num_tokens, reply.num_retries) == ("hi", "loopback-1", 11, 0)
    assert 0 < reply.latency_s < 5 and not reply.is_cut
    sent = endpoint.requests[0]
    assert (sent["model"], sent["seed"], sent["temperature"], sent["max_tokens"]) == ("any", 5, 0.25, 17)
    assert sent["messages"] == ASK
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_an_endpoint_without_structured_output_is_asked_for_none():
    async with serve_endpoint(["hi"]) as endpoint:
        chat = chat_to(endpoint, structured=False, temperature=None)
        await chat.complete(ASK, seed=5, schema=SCHEMA)
        await chat.close()
    assert endpoint.requests[0].keys() == {"model", "messages", "seed", "max_tokens"}


ODD = (
    b"{",
    b"[]",
    b'"hi"',
    {"choices": []},
    {"choices": [None]},
    {"choices": [{"message": None}]},
    {"choices": [{"message": {"content": [{"text": "hi"}]}}]},
)
"""Bodies of status 200 that are no chat completion."""


@pytest.mark.medium
@pytest.mark.parametrize("bad", [500, 502, 503, 408, 409, 429, *ODD])
async def test_what_may_mend_is_tried_again(bad: Any):
    async with serve_endpoint([bad, bad, "hi"]) as endpoint:
        chat = chat_to(endpoint)
        reply = await chat.complete(ASK, seed=1)
        await chat.close()
    assert (reply.text, reply.num_retries, len(endpoint.requests)) == ("hi", 2, 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_no_retry_mends_ends_at_once(status: int):
    async with serve_endpoint([status]) as endpoint:
        error = await failure_of(chat_to(endpoint))
    assert len(endpoint.requests) == 1 and error.failure is Failure.ERROR
    assert f"status {status}" in str(error)


async def test_a_spent_quota_is_not_tried_again():
    async with serve_endpoint([(429, "insufficient_quota")]) as endpoint:
        await failure_of(chat_to(endpoint))
    assert len(endpoint.requests) == 1


async def test_a_rejected_schema_says_the_cure():
    async with serve_endpoint([400]) as endpoint:
        chat = chat_to(endpoint)
        with pytest.raises(SimulatorError, match="needs structured = false"):
            await chat.complete(ASK, seed=1, schema=SCHEMA)
        await chat.close()


async def test_a_hanging_endpoint_is_a_time_out():
    async with serve_endpoint([30.0]) as endpoint:
        began = time.monotonic()
        error = await failure_of(chat_to(endpoint, timeout_s=0.1, max_retries=1))
        assert time.monotonic() - began < 5
    assert error.failure is Failure.TIMEOUT and "in 2 tries: no reply within 0.1 s" in str(error)


async def test_an_endpoint_that_is_not_there_is_an_error():
    async with serve_endpoint(["hi"]) as endpoint:
        pass
    error = await failure_of(chat_to(endpoint))
    assert error.failure is Failure.ERROR and "in 3 tries" in str(error)


async def test_no_more_calls_are_in_flight_than_allowed():
    async with serve_endpoint(["hi"]) as endpoint:
        endpoint.delay_s = 0.01
        chat = chat_to(endpoint, max_concurrency=3)
        await asyncio.gather(*(chat.complete(ASK, seed=i) for i in range(20)))
        await chat.close()
    assert endpoint.most_open == 3 and len(endpoint.requests) == 20


@pytest.mark.medium
@pytest.mark.parametrize(("bad", "is_overload"), [(429, True), (503, True), (30.0, True), (500, False)])
async def test_an_endpoint_that_has_too_much_to_do_is_asked_less_at_a_time(bad: Any, is_overload: bool):
    async with serve_endpoint([bad] * 4 + ["hi"]) as endpoint:
        chat = chat_to(endpoint, max_concurrency=8, timeout_s=0.3, max_retries=4)
        first = await chat.complete(ASK, seed=1)
        await chat.close()
    assert first.concurrency == (4 if is_overload else 8)


async def test_a_budget_of_calls_counts_every_try():
    async with serve_endpoint([500, "hi", "hi", "hi"]) as endpoint:
        chat = chat_to(endpoint, max_calls=3)
        await chat.complete(ASK, seed=1)
        await chat.complete(ASK, seed=2)
        error = await failure_of(chat)
    assert error.failure is Failure.OUT_OF_BUDGET and "max_calls=3" in str(error)
    assert len(endpoint.requests) == 3


async def test_a_budget_of_tokens_ends_the_calls():
    async with serve_endpoint(["hi"]) as endpoint:
        chat = chat_to(endpoint, max_total_tokens=12)
        await chat.complete(ASK, seed=1)
        await chat.complete(ASK, seed=2)  # 11 of 12 were used before it
        error = await failure_of(chat)
    assert error.failure is Failure.OUT_OF_BUDGET and chat.num_tokens == 22


async def test_tokens_are_estimated_where_an_endpoint_reports_none():
    body = completion("x" * 31)
    del body["usage"]
    async with serve_endpoint([body]) as endpoint:
        chat = chat_to(endpoint)
        assert (await chat.complete(ASK, seed=1)).num_tokens == (5 + 31) // 4
        await chat.close()
    async with serve_endpoint([completion("x" * 31) | {"usage": {"total_tokens": "many"}}]) as endpoint:
        chat = chat_to(endpoint)
        assert (await chat.complete(ASK, seed=1)).num_tokens == (5 + 31) // 4
        await chat.close()


def test_one_client_serves_one_loop_after_another():
    chats: list[ChatClient] = []

    async def once() -> str:
        async with serve_endpoint(["hi"]) as endpoint:
            chats[:] = chats or [chat_to(endpoint)]
            object.__setattr__(chats[0].config, "base_url", endpoint.url)  # each loop has its own server
            return (await chats[0].complete(ASK, seed=1)).text

    assert [asyncio.run(once()) for _ in range(2)] == ["hi", "hi"]


async def test_the_key_shows_in_no_error_log_or_pickle(caplog: pytest.LogCaptureFixture):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        async with serve_endpoint([401, 500, f"your key is {KEY}", completion(None)]) as endpoint:
            chat = chat_to(endpoint, max_retries=0)
            errors = []
            for _ in range(2):
                with pytest.raises(SimulatorError) as info:
                    await chat.complete(ASK, seed=1)
                errors.append(info.value)
            reply = await chat.complete(ASK, seed=1)
            assert (await chat.complete(ASK, seed=1)).text == ""
            await chat.close()
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert reply.text == "your key is ***"
    shown = [stream.getvalue(), caplog.text, repr(chat), repr(chat.config), repr(reply)]
    shown += [chat.config.model_dump_json(), repr(pickle.dumps(chat))]
    for error in errors:
        assert "***" in str(error) and error.__cause__ is None and error.__context__ is None
        shown += ["".join(traceback.format_exception(error)), repr(error), repr(pickle.dumps(error))]
    assert not [text for text in shown if KEY in text]
    assert pickle.loads(pickle.dumps(chat))._key == KEY  # read again from the environment


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_refused_with_its_cure(monkeypatch: pytest.MonkeyPatch, value: str | None):
    monkeypatch.delenv("LOOPBACK_KEY")
    if value is not None:
        monkeypatch.setenv("LOOPBACK_KEY", value)
    with pytest.raises(ValueError, match=r"LOOPBACK_KEY.*not set: export it"):
        ChatClient(ChatConfig(base_url="http://x/v1", model="m", api_key_env="LOOPBACK_KEY"))


def test_a_key_that_fits_no_header_is_refused_unseen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOOPBACK_KEY", "sk-é-secret")
    with pytest.raises(ValueError) as error:
        ChatClient(ChatConfig(base_url="http://x/v1", model="m", api_key_env="LOOPBACK_KEY"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["x", "ftp://x/v1", "http://me:word@x/v1", "http://x/v1?key=word"])
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str):
    with pytest.raises(ValidationError, match="base_url must") as error:
        ChatConfig(base_url=url, model="m")
    assert "word@" not in str(error.value) and "=word" not in str(error.value)


def test_a_key_in_place_of_its_name_is_refused():
    with pytest.raises(ValidationError, match="never the key itself") as error:
        ChatConfig(base_url="http://x/v1", model="m", api_key_env="sk-123")
    assert "sk-123" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("2.5", 2.5),
        ("-1", 0.0),
        ("", 0.0),
        ("\u00b2", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
    ],
)
def test_retry_after_is_a_number_of_seconds(value: str, seconds: float) -> None:
    assert retry_after_s({"retry-after": value}) == seconds


def test_retry_after_may_be_a_date() -> None:
    later, earlier = time.time() + 90, time.time() - 90
    assert retry_after_s({"retry-after": formatdate(later, usegmt=True)}) == pytest.approx(90, abs=2)
    assert retry_after_s({"retry-after": formatdate(earlier, usegmt=True)}) == 0.0
    assert retry_after_s({}) == 0.0
