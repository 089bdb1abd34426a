"""Oversized, deep or compressed responses of endpoints: cut off, and a failure of the user."""

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web

from simulators.input_limits import MAX_BODY_BYTES
from simulators.llm_client.client import ChatClient, ChatConfig
from simulators.llm_client.http_limits import UNCOMPRESSED, TooLargeError, size_limit_hooks
from simulators.llm_client.response import MAX_CHARS_PER_TOKEN, MAX_TOOL_CALLS
from simulators.serving.llm_proxy import LlmProxyTransport
from simulators.user import Failure, SimulatorError, UserCall
from simulators.users.web_search_user import WebSearchUser
from tests.fake_endpoint import completion, serve_endpoint

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MIB = 2**20
PACKED = gzip.compress(b" " * (64 * MIB))


@asynccontextmanager
async def server(handle: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


async def flood(request: web.Request) -> web.StreamResponse:
    """As much as somebody reads, without saying how much it is."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 2**16)
    except ConnectionError:
        return response


async def packed(request: web.Request) -> web.StreamResponse:
    """64 MiB in 64 KiB."""
    return web.Response(body=PACKED, headers={"Content-Encoding": "gzip"})


async def declared(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * 100, headers={})


@pytest.mark.parametrize(("handle", "says"), [(flood, "more than 1048576 bytes"), (packed, "is compressed")])
async def test_an_answer_is_read_up_to_a_limit(handle: Handler, says: str) -> None:
    async with (
        server(handle) as url,
        httpx.AsyncClient(headers=UNCOMPRESSED, event_hooks=size_limit_hooks(MIB)) as http,
    ):
        tracemalloc.start()
        with pytest.raises(TooLargeError, match=says):
            await http.get(url)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * MIB


async def test_an_answer_that_says_that_it_is_long_is_not_begun() -> None:
    async with server(declared) as url, httpx.AsyncClient(event_hooks=size_limit_hooks(99)) as http:
        with pytest.raises(TooLargeError, match="more than 99 bytes"):
            await http.get(url)
    async with server(declared) as url, httpx.AsyncClient(event_hooks=size_limit_hooks(100)) as http:
        assert len((await http.get(url)).content) == 100


def chat(url: str, **settings: object) -> ChatClient:
    return ChatClient(
        ChatConfig(base_url=url, model="m", api_key_env="", max_retries=0, max_tokens=8, **settings)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "body",
    [
        b" " * (MAX_BODY_BYTES + 1),
        b"[" * 100_000 + b"]" * 100_000,
        b'{"choices":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'{"choices": [' + b"1" * 5_000 + b"]}",
    ],
)
async def test_a_body_that_is_too_long_or_too_deep_is_a_failure_of_the_endpoint(body: bytes) -> None:
    async with serve_endpoint([body]) as endpoint:
        with pytest.raises(SimulatorError, match="no reply in 1 tries") as error:
            await chat(endpoint.url).complete([{"role": "user", "content": "hi"}], seed=0)
    assert error.value.failure is Failure.ERROR and len(str(error.value)) < 1_000


async def test_a_reply_beyond_its_tokens_is_cut_and_says_so() -> None:
    async with serve_endpoint(["x" * 100_000]) as endpoint:
        reply = await chat(endpoint.url).complete([{"role": "user", "content": "hi"}], seed=0)
    assert (len(reply.text), reply.is_cut) == (8 * MAX_CHARS_PER_TOKEN, True)


async def test_a_usage_that_is_no_count_is_guessed() -> None:
    body = completion("hello")
    body["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 10**30}
    body["model"] = "m" * 10_000
    async with serve_endpoint([body]) as endpoint:
        reply = await chat(endpoint.url).complete([{"role": "user", "content": "hi there"}], seed=0)
    assert reply.num_tokens == (len("hi there") + len("hello")) // 4 and len(reply.model) == 200


async def test_of_a_flood_of_tool_calls_the_first_are_read() -> None:
    body = completion(None)
    call = {"id": "c", "type": "function", "function": {"name": "n" * 1_000, "arguments": "a" * 10_000}}
    body["choices"][0]["message"]["tool_calls"] = [call] * 100
    async with serve_endpoint([body]) as endpoint:
        reply = await chat(endpoint.url).complete([{"role": "user", "content": "hi"}], seed=0)
    assert len(reply.tool_calls) == MAX_TOOL_CALLS
    assert {(len(name), len(text)) for name, text in reply.tool_calls} == {(200, 8 * MAX_CHARS_PER_TOKEN)}


async def test_a_redirect_takes_prompt_and_key_nowhere() -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/v1/chat/completions")

    async with server(elsewhere) as url:
        with pytest.raises(SimulatorError, match="status 307"):
            await chat(f"{url}/v1").complete([{"role": "user", "content": "hi"}], seed=0)


async def test_a_search_endpoint_is_read_up_to_the_same_limit() -> None:
    async def deep(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"organic": ' + b"[" * 5_000 + b"]" * 5_000 + b"}")

    async def long(request: web.Request) -> web.StreamResponse:
        result = {"title": "t" * 100_000, "snippet": {"a": "s" * 100_000}}
        return web.json_response({"organic": [result] * 10})

    call = UserCall(gym="search", scenario={}, question="who", choice="search")
    async with server(deep) as url:
        with pytest.raises(SimulatorError, match="not the expected JSON: nested too deeply"):
            await WebSearchUser(None, url=url, max_retries=0).reply(call)  # type: ignore[arg-type]
    async with server(long) as url:
        reply = await WebSearchUser(None, url=url, max_retries=0).reply(call)  # type: ignore[arg-type]
        assert [len(line) for line in reply.text.splitlines()] == [400] * 5


class Replica:
    """A relay's handle, without Ray."""

    def __init__(self, *answers: object):
        self.asked: list[tuple[str, str, bytes]] = []
        self._answers = list(answers)

    @property
    def send(self) -> "Replica":
        return self

    async def remote(self, method: str, path: str, body: bytes) -> object:
        self.asked.append((method, path, body))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_hosted_model_is_asked_through_the_relay() -> None:
    from ray.exceptions import RayActorError

    answer = 200, {"content-type": "application/json"}, json.dumps(completion("through")).encode()
    handle = Replica(RayActorError(), (503, {"retry-after": "0"}, b"busy"), answer)
    config = ChatConfig(
        base_url="http://127.0.0.1:8000/llm-run-qwen/v1", model="qwen", api_key_env="", backoff_s=0.01
    )
    reply = await ChatClient(config, transport=lambda: LlmProxyTransport(handle)).complete(
        [{"role": "user", "content": "hi"}], seed=0
    )
    assert (reply.text, reply.num_retries) == ("through", 2)
    method, path, body = handle.asked[-1]
    assert (method, path) == ("POST", "/llm-run-qwen/v1/chat/completions")
    assert json.loads(body)["messages"] == [{"role": "user", "content": "hi"}]
