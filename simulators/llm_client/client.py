"""Async client of OpenAI-compatible endpoints for simulated users and judges: concurrency limits, retries,
token budget, and API keys kept out of every text."""

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from simulators.llm_client.adaptive_concurrency import OVERLOADED, AdaptiveLimiter
from simulators.llm_client.config import ChatConfig
from simulators.llm_client.response import EndpointResponse, UnreadableResponse, read_response
from simulators.user import Failure, SimulatorError

if TYPE_CHECKING:
    import httpx
    from openai import APIStatusError

MAX_WAIT_S = 60.0
"""Maximum wait before a retry, even if an endpoint asks for more."""
MAX_ERROR_CHARS = 300
"""An endpoint's error text is cut to this length."""
MIN_SECRET_CHARS = 4
"""Shorter keys (such as a local server's "x") are no secrets, and removing them would garble every text."""
RETRIED = (408, 409, 425, 429)
"""Statuses below 500 that are retried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """Reply of one call, with the costs of all its tries."""

    text: str
    """May be empty."""
    model: str
    """The endpoint's name of it."""
    is_cut: bool
    """It reached `max_tokens` before its end."""
    num_tokens: int
    """Tokens read and written."""
    latency_s: float
    num_retries: int
    concurrency: int = 0
    """Concurrency limit of its endpoint at that moment: see `adaptive_concurrency`."""
    tool_calls: tuple[tuple[str, str], ...] = ()
    """(tool's name, arguments as the model wrote them) of each call, if tools were offered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    """A failed try; its text is free of the key."""

    text: str
    failure: Failure = Failure.ERROR
    is_final: bool = False
    is_overload: bool = False
    """The endpoint was overloaded or too slow."""
    wait_s: float = 0.0
    """Minimum wait that the endpoint asks for."""


class ChatClient:
    """Calls one endpoint. Works in one event loop at a time. Can be pickled; the key is not included."""

    def __init__(
        self, config: ChatConfig, *, transport: "Callable[[], httpx.AsyncBaseTransport] | None" = None
    ):
        """Reads the key. Raises ValueError if its variable is not set. `transport` creates the HTTP transport
        of each event loop; None: the network."""
        self.config = config
        self._transport = transport
        self.num_calls = 0
        """Tries made so far."""
        self.num_tokens = 0
        """Tokens used so far."""
        self._key = _read_key(config.api_key_env)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"Chat({self.config.model!r} at {self.config.base_url})"

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _chat, (self.config, self._transport)

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> ChatReply:
        """The model's reply; with `schema`, the endpoint is asked to follow it; with `tools`, the model may
        call them.

        Raises `SimulatorError`: TIMEOUT or ERROR after the last try or at once if a retry cannot help,
        OUT_OF_BUDGET if the budget is spent before a try.
        """
        began = time.monotonic()
        self._open()
        problem: _Problem | None = None
        for num_retries in range(self.config.max_retries + 1):
            if problem:
                # Full jitter, so that the callers of a failing endpoint do not retry at the same time.
                wait_s = random.uniform(0, 2 * self.config.backoff_s) * 2 ** (num_retries - 1)
                await asyncio.sleep(min(MAX_WAIT_S, max(wait_s, problem.wait_s)))
            async with self._limiter.call() as outcome:
                self._check_budget()
                concurrency = self._limiter.limit
                result = await self._try(messages, seed=seed, schema=schema, tools=tools)
                outcome.is_refused = isinstance(result, _Problem) and result.is_overload
                outcome.is_answered = not isinstance(result, _Problem)
            if not isinstance(result, _Problem):
                return ChatReply(
                    text=result.text,
                    model=result.model or self.config.model,
                    is_cut=result.is_cut,
                    num_tokens=result.num_tokens,
                    latency_s=time.monotonic() - began,
                    num_retries=num_retries,
                    concurrency=concurrency,
                    tool_calls=result.tool_calls,
                )
            problem = result
            if problem.is_final:
                break
        assert problem is not None
        tries = "" if problem.is_final else f" in {self.config.max_retries + 1} tries"
        # Outside any `except`: the endpoint's error may contain the key and must not be chained to this one.
        raise SimulatorError(f"{self!r}: no reply{tries}: {problem.text}", problem.failure)

    async def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
        if self._loop is not None:
            self._loop = None
            await self._client.close()

    def _open(self) -> None:
        """Opens the connection pool and limiter, which belong to one event loop, once per loop."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        import httpx
        from openai import AsyncOpenAI

        # Slow imports that a recipe check does not need.
        from simulators.llm_client.http_limits import UNCOMPRESSED, size_limit_hooks

        client: Any = httpx.AsyncClient(
            transport=self._transport() if self._transport else None,
            timeout=None,
            limits=httpx.Limits(max_connections=self.config.max_concurrency),
            event_hooks=size_limit_hooks(),
        )
        self._client: AsyncOpenAI = AsyncOpenAI(
            base_url=self.config.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=None,
            default_headers=UNCOMPRESSED,
            http_client=client,
        )
        self._limiter = AdaptiveLimiter(self.config.max_concurrency)
        self._loop = loop

    def _check_budget(self) -> None:
        """Raises `SimulatorError` if the budget is spent. Calls in flight may still exceed it."""
        for name, used, limit in (
            ("max_calls", self.num_calls, self.config.max_calls),
            ("max_total_tokens", self.num_tokens, self.config.max_total_tokens),
        ):
            if limit is not None and used >= limit:
                text = (
                    f"{self!r}: the budget is spent ({name}={limit}): raise it, or leave it out for no limit"
                )
                raise SimulatorError(text, Failure.OUT_OF_BUDGET)

    async def _try(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        schema: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]],
    ) -> EndpointResponse | _Problem:
        """The response of one try, or its problem."""
        from openai import APIError, APIStatusError

        self.num_calls += 1
        try:
            async with asyncio.timeout(self.config.timeout_s):
                completion: Any = await self._client.chat.completions.create(
                    **self._request(messages, seed=seed, schema=schema, tools=tools)
                )
        except TimeoutError:
            text = f"no reply within {self.config.timeout_s:g} s"
            return _Problem(text=text, failure=Failure.TIMEOUT, is_overload=True)
        except APIStatusError as error:
            return self._status_problem(error, with_schema=schema is not None)
        except (APIError, ValueError, RecursionError) as error:  # no JSON, or too long or deep
            cause = error.__cause__ or error
            return _Problem(text=self._clean(f"{type(cause).__name__}: {cause}"))
        try:  # the client does not validate the form of a response
            answer = read_response(
                completion,
                max_tokens=self.config.max_tokens,
                num_chars_read=sum(len(str(message.get("content", ""))) for message in messages),
                clean=self._without_key,
            )
        except UnreadableResponse as error:
            return _Problem(text=str(error))
        self.num_tokens += answer.num_tokens
        return answer

    def _request(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        schema: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.config.model,
            "messages": list(messages),
            "seed": seed,
            "max_tokens": self.config.max_tokens,
        }
        if self.config.temperature is not None:
            request["temperature"] = self.config.temperature
        if schema is not None and self.config.structured:
            json_schema = {"name": "verdict", "schema": dict(schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        if tools:
            request["tools"] = [dict(tool) for tool in tools]
        return request

    def _status_problem(self, error: "APIStatusError", *, with_schema: bool) -> _Problem:
        status = error.status_code
        text = self._clean(f"status {status}: {error.message}")
        if with_schema and self.config.structured and status in (400, 422):
            text += " (an endpoint without response_format json_schema needs structured = false)"
        is_retried = (status in RETRIED or status >= 500) and error.code != "insufficient_quota"
        return _Problem(
            text=text,
            is_final=not is_retried,
            is_overload=is_retried and status in OVERLOADED,
            wait_s=retry_after_s(error.response.headers),
        )

    def _clean(self, text: str) -> str:
        """One line, capped, without the key."""
        return " ".join(self._without_key(text).split())[:MAX_ERROR_CHARS]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= MIN_SECRET_CHARS else text


def _chat(config: ChatConfig, transport: "Callable[[], httpx.AsyncBaseTransport] | None") -> ChatClient:
    return ChatClient(config, transport=transport)


def _read_key(variable: str) -> str:
    """The key; empty if no variable is named. No error text shows it."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"api_key_env={variable!r}: this environment variable is not set: export it where the run "
            'starts, or set api_key_env = "" for an endpoint without a key'
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"the key in {variable} cannot stand in an HTTP header: it must be plain ASCII")
    return key


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The Retry-After header in seconds from now, from a number or a date; 0 if there is none that can be
    read."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
