"""A real OpenAI-compatible server on loopback that behaves as badly as a test asks."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = str | int | float | dict[str, Any] | bytes | tuple[int, str]
"""A reply's text; a status >= 400, or one with an error code; seconds to hang; a whole body; raw bytes."""
Script = Sequence[Answer] | Callable[[dict[str, Any]], Answer]


@dataclass
class Endpoint:
    """What the server saw, and what it says next: the script's answers in turn, the last one for ever."""

    script: Script
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0
    delay_s: float = 0.0
    """How long every reply takes."""
    finish_reason: str = "stop"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            return await self._answer(request)
        finally:
            self.num_open -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.requests)
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if callable(self.script):
            answer = self.script(body)
        else:
            answer = self.script[min(number, len(self.script) - 1)]
        await asyncio.sleep(self.delay_s)
        if isinstance(answer, int) and answer >= 400:
            answer = answer, ""
        if isinstance(answer, tuple):
            status, code = answer
            key = request.headers.get("Authorization", "")
            error = {"message": f"bad luck, {key}", "type": "bad", "code": code, "param": None}
            return web.json_response({"error": error}, status=status, headers={"Retry-After": "0"})
        if isinstance(answer, int | float):
            await asyncio.sleep(answer)
            return web.json_response({})
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        return web.json_response(
            answer if isinstance(answer, dict) else completion(answer, self.finish_reason)
        )


def completion(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion of 11 tokens."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "loopback-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11},
    }


@asynccontextmanager
async def serve_endpoint(script: Script) -> AsyncIterator[Endpoint]:
    """The server, at `url`, on a free port."""
    endpoint = Endpoint(script=script)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    endpoint.url = f"http://{host}:{port}/v1"
    try:
        yield endpoint
    finally:
        await runner.cleanup()


def latest_of(body: dict[str, Any]) -> str:
    """What the agent said last, as a request's user message carries it."""
    return json.loads(body["messages"][-1]["content"])["latest"]
