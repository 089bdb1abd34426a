"""Size limits on HTTP responses: an oversized response is cut off before it fills the memory.

Compressed responses are refused: they may unpack to any size.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from simulators.input_limits import MAX_BODY_BYTES

UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""Headers that request an uncompressed response."""
ResponseHook = Callable[[httpx.Response], Awaitable[None]]


class TooLargeError(ValueError):
    """The response is too long, or compressed."""


class _Capped(httpx.AsyncByteStream):
    """A body stream that raises after `most` bytes."""

    def __init__(self, stream: Any, *, most: int):
        self._stream = stream
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            if size > self._most:
                raise _too_large(self._most)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def size_limit_hooks(most: int = MAX_BODY_BYTES) -> dict[str, list[ResponseHook]]:
    """`event_hooks` for an `httpx.AsyncClient`: reading more than `most` bytes of a response raises
    `TooLargeError`."""

    async def hook(response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise TooLargeError("the answer is compressed, which was not asked for")
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
            raise _too_large(most)
        response.stream = _Capped(response.stream, most=most)

    return {"response": [hook]}


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the answer has more than {most} bytes")
