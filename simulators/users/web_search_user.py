"""User wrapper that answers the search gym's searches from an HTTP search endpoint and forwards all other
calls to another user.

A search succeeds or fails like a question: with a reply, or a `SimulatorError` that ends the trajectory
without a score. The key is read from the environment at each request and stored nowhere.
"""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import httpx

from simulators.input_limits import MAX_BODY_BYTES, load_json
from simulators.llm_client.adaptive_concurrency import OVERLOADED, AdaptiveLimiter
from simulators.llm_client.http_limits import UNCOMPRESSED, size_limit_hooks
from simulators.user import WEB, Failure, SimulatorError, User, UserCall, UserReply

NUM_RESULTS = 5
"""Results shown, as published."""
MAX_QUERY = 400
"""Characters of a query that are sent."""
MAX_LINE = 400
"""Characters of title and snippet that are shown of one result."""
RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that are retried; all others fail at once."""
NOTHING_FOUND = "Nothing found."


class WebSearchUser:
    """Answers the search gym's `search` calls from an endpoint, and forwards all other calls to `inner`.

    The endpoint takes POST with `{query_field: query}` and answers with JSON, a list of objects with `title`
    and `snippet` under `results_field` (dots separate nested fields). Belongs to one event loop.

    Example: `WebSearchUser(RuleUser(), url="https://example.org/search", api_key_env="SEARCH_KEY")`.
    """

    def __init__(
        self,
        inner: User,
        *,
        url: str,
        api_key_env: str = "",
        api_key_header: str = "X-API-KEY",
        query_field: str = "q",
        results_field: str = "organic",
        timeout_s: float = 10.0,
        max_retries: int = 3,
        backoff_s: float = 0.5,
        max_concurrent: int = 16,
    ):
        """`api_key_env` names the environment variable with the key; empty: the endpoint requires none.
        `timeout_s` is for each try, `backoff_s` the mean wait before the first retry."""
        address = _address(url)
        if max_retries < 0 or max_concurrent < 1:
            raise ValueError(
                f"max_retries={max_retries}, max_concurrent={max_concurrent}: give at least 0 and 1"
            )
        if api_key_env and not os.environ.get(api_key_env):
            raise ValueError(f"api_key_env={api_key_env!r} is not set: put the endpoint's key into it")
        self._inner = inner
        self._url = address
        self._api_key_env = api_key_env
        self._api_key_header = api_key_header
        self._query_field = query_field
        self._results_field = results_field
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._backoff_s = backoff_s
        self._limiter = AdaptiveLimiter(max_concurrent)
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=max_concurrent),
            headers=UNCOMPRESSED,
            event_hooks=size_limit_hooks(),
        )

    async def reply(self, call: UserCall) -> UserReply:
        """The reply. Raises `SimulatorError`: at once if the endpoint refuses, else after all tries."""
        if call.gym != "search" or call.choice != "search":
            return await self._inner.reply(call)
        began = time.monotonic()
        problem = ""
        failure = Failure.ERROR
        num_retries = 0
        for num_retries in range(self._max_retries + 1):
            if num_retries:
                # Full jitter, so that the callers of an overloaded endpoint do not retry at the same time.
                await asyncio.sleep(random.uniform(0, 2 * self._backoff_s) * 2 ** (num_retries - 1))
            try:
                lines = await self._search(call.question)
            except (httpx.TimeoutException, TimeoutError):
                problem, failure = f"no answer within {self._timeout_s:g} s", Failure.TIMEOUT
            except httpx.HTTPStatusError as error:
                problem, failure = f"status {error.response.status_code}", Failure.ERROR
                if error.response.status_code not in RETRIED:
                    break
            except httpx.RequestError as error:
                problem, failure = type(error).__name__, Failure.ERROR  # its text may contain a header
            except ValueError as error:
                problem, failure = f"not the expected JSON: {error}", Failure.ERROR
            else:
                return UserReply(
                    text="\n".join(lines) or NOTHING_FOUND,
                    facts={"num_results": len(lines)},
                    simulator=WEB,
                    latency_s=time.monotonic() - began,
                    num_retries=num_retries,
                )
        raise SimulatorError(f"search: {self._url.host}: {problem}, tries: {num_retries + 1}", failure, WEB)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def _headers(self) -> dict[str, str]:
        if not self._api_key_env:
            return {}
        key = os.environ.get(self._api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            text = f"search: {self._api_key_env} holds no key: put the endpoint's key into it"
            raise SimulatorError(text, Failure.ERROR, WEB)
        return {self._api_key_header: key}

    async def _search(self, query: str) -> list[str]:
        """One try. The time limit starts when the limiter admits it, and covers the whole response."""
        headers = self._headers()
        async with self._limiter.call() as outcome:
            try:
                async with asyncio.timeout(self._timeout_s):
                    response = await self._client.post(
                        self._url,
                        json={self._query_field: query[:MAX_QUERY]},
                        headers=headers,
                        timeout=self._timeout_s,
                    )
            except (httpx.TimeoutException, TimeoutError):
                outcome.is_refused = True
                raise
            outcome.is_refused = response.status_code in OVERLOADED
            outcome.is_answered = response.is_success
        response.raise_for_status()
        return _lines(load_json(response.text, max_chars=MAX_BODY_BYTES), field=self._results_field)


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"url={url!r}: {error}: give a search endpoint's address") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(f"url={url!r}: a search endpoint's address starts with http:// or https://")
    return address


def _lines(body: Any, *, field: str) -> list[str]:
    """`title: snippet` of the first results. Raises ValueError if the body has another form."""
    for name in field.split("."):
        if not isinstance(body, Mapping):
            raise ValueError(f"no object around {name!r} in the answer")
        body = body.get(name, [])
    if not isinstance(body, list):
        raise ValueError(f"{field!r} in the answer is no list")
    results = [result for result in body if isinstance(result, Mapping)][:NUM_RESULTS]
    parts = ([str(result.get(name) or "")[:MAX_LINE] for name in ("title", "snippet")] for result in results)
    return [" ".join(": ".join(part).split())[:MAX_LINE] for part in parts]
