"""ASGI middleware of the HTTP API of simulated users: API key check and request size limits.

The key never leaves the environment of the starting process: replicas get its hash, which cannot be inverted
for a long key.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from simulators.input_limits import depth_of

MAX_REQUEST_BYTES = 2**20
"""Body of one request: a call with its whole history has some thousands."""
MAX_REQUEST_DEPTH = 32
"""Nested objects and lists in a request."""
MIN_KEY_CHARS = 16
"""Shorter keys can be guessed."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host in LOOPBACK or host.startswith("127.")


def key_hash(variable: str, *, host: str) -> str:
    """The hash of the key in this environment variable; empty if it is unset, which is allowed on loopback
    only. Raises ValueError, one line, without the key in it."""
    key = os.environ.get(variable, "").strip()
    if not key:
        if is_loopback(host):
            return ""
        raise ValueError(
            f"simulator.host={host}: others reach it there, so it asks for a key: export one as {variable}, "
            "or leave the host out for this machine alone"
        )
    if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{variable}: a key is at least {MIN_KEY_CHARS} ASCII letters and digits: `openssl rand -hex 32`"
        )
    return _hash(key)


class ApiKeyMiddleware:
    """Forwards requests that have the key and are small enough; refuses others with status 401, 413 or
    400."""

    def __init__(self, app: App, *, expected: str = "", most_bytes: int = MAX_REQUEST_BYTES):
        """`expected` is the result of `key_hash`; empty: no key is required."""
        self._app = app
        self._expected = expected
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # only HTTP is supported
            return await send({"type": "websocket.close", "code": 1008})
        if self._expected and not self._is_known(scope["headers"]):
            return await _refuse(send, 401, "give the key as `Authorization: Bearer KEY`")
        body = await _body(receive, most=self._most_bytes)
        if body is None:
            return await _refuse(send, 413, f"a request has at most {self._most_bytes} bytes")
        if depth_of(body.decode(errors="replace"), enough=MAX_REQUEST_DEPTH) > MAX_REQUEST_DEPTH:
            return await _refuse(send, 400, f"a request is nested at most {MAX_REQUEST_DEPTH} deep")
        await self._app(scope, _replay(body, receive), send)

    def _is_known(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the request has the right key. Takes the same time for every wrong key."""
        given = next((value for name, value in headers if name.lower() == b"authorization"), b"")
        scheme, _, key = given.decode("latin-1").partition(" ")
        is_key = hmac.compare_digest(_hash(key.strip()), self._expected)
        return is_key and scheme.lower() == "bearer"


def _hash(key: str) -> str:
    return hashlib.sha256(b"userrl simulator key\0" + key.encode("utf-8", "replace")).hexdigest()


async def _body(receive: Receive, *, most: int) -> bytes | None:
    """The whole body; None if it is longer or the sender disconnected."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that replays the body, then forwards later messages."""
    is_sent = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
