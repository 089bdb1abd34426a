"""The web search user against a real HTTP server: every failure is the simulator's, and the key is never
shown."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from simulators.env import GymEnv
from simulators.gyms.search import GYM
from simulators.task import Task, TaskKey
from simulators.user import Failure, SimulatorError, UserCall, UserReply
from simulators.users.rule_user import RuleUser
from simulators.users.web_search_user import MAX_LINE, MAX_QUERY, NOTHING_FOUND, NUM_RESULTS, WebSearchUser

RULES = RuleUser({"search": GYM})
KEY = "secret-key-4711"
RESULTS = [{"title": f"Title {i}", "snippet": f"Snippet\n {i}"} for i in range(9)]


class Endpoint:
    """Answers each request by the next of `answers` (status, body, delay in s), and keeps the requests."""

    def __init__(self, url: str):
        self.url = url
        self.answers: list[tuple[int, bytes, float]] = []
        self.requests: list[tuple[dict[str, Any], str]] = []
        self.num_open = self.max_open = 0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                known.requests.append((body, self.headers.get("X-API-KEY", "")))
                known.num_open += 1
                known.max_open = max(known.max_open, known.num_open)
                status, content, delay_s = known.answers.pop(0) if known.answers else (200, good(), 0.0)
            time.sleep(delay_s)
            with lock:
                known.num_open -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    known = Endpoint(f"http://127.0.0.1:{server.server_port}/search")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield known
    server.shutdown()
    server.server_close()


def good(results: object = RESULTS) -> bytes:
    return json.dumps({"organic": results}).encode()


def make_user(endpoint: Endpoint, **options: Any) -> WebSearchUser:
    return WebSearchUser(RULES, url=endpoint.url, **{"backoff_s": 0.01, **options})


def make_call(query: str = "who", **changes: Any) -> UserCall:
    scenario = {"web": True, "question": "Who?", "answers": ["Ada"]}
    return UserCall(
        **{"gym": "search", "scenario": scenario, "question": query, "choice": "search", **changes}
    )


async def ask(user: WebSearchUser, call: UserCall) -> UserReply:
    try:
        return await user.reply(call)
    finally:
        await user.close()


async def failure_of(user: WebSearchUser) -> SimulatorError:
    with pytest.raises(SimulatorError) as caught:
        await ask(user, make_call())
    return caught.value


async def test_the_first_results_come_as_lines_and_the_query_goes_as_data(endpoint: Endpoint):
    reply = await ask(make_user(endpoint), make_call('who "} is' + "x" * 1000))
    assert reply.text.splitlines() == [f"Title {i}: Snippet {i}" for i in range(NUM_RESULTS)]
    assert reply.facts == {"num_results": NUM_RESULTS} and reply.simulator == "web"
    ((body, key),) = endpoint.requests
    assert body["q"].startswith('who "} is') and len(body["q"]) == MAX_QUERY and key == ""


async def test_a_dialogue_searches_the_web_and_is_judged_by_the_inner_user(endpoint: Endpoint):
    key = TaskKey(gym="search", split="test", index=0, seed=0, difficulty=0)
    task = Task(key=key, opening="Who?", scenario=make_call().scenario)
    user = make_user(endpoint)
    env = GymEnv(GYM, task=task, user=user)
    found = await env.step("[search] who")
    assert found.feedback.startswith("Title 0") and found.reward == 0
    assert (await env.step("[answer] ada")).reward == 1
    await user.close()
    assert len(endpoint.requests) == 1


async def test_calls_other_than_searches_go_to_the_inner_user(endpoint: Endpoint):
    user = make_user(endpoint)
    assert (await user.reply(make_call("Ada", choice="answer"))).facts == {"verdict": "right"}
    await ask(user, make_call("Which?", choice="action"))
    assert endpoint.requests == []


async def test_statuses_that_may_pass_are_tried_again(endpoint: Endpoint):
    endpoint.answers = [(503, b"", 0), (429, b"", 0)]
    reply = await ask(make_user(endpoint), make_call())
    assert reply.num_retries == 2 and len(endpoint.requests) == 3


async def test_a_refusal_is_final(endpoint: Endpoint):
    for status in (301, 400, 401, 403, 404):
        endpoint.answers = [(status, b"no", 0)]
        endpoint.requests.clear()
        error = await failure_of(make_user(endpoint))
        assert error.failure == Failure.ERROR and str(status) in str(error) and len(endpoint.requests) == 1


@pytest.mark.medium
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"7",
        b'{"organic": 3}',
        b'{"organic": {"a": 1}}',
        b"\xff\xfe",
        b'{"organic": null}',
    ],
)
async def test_a_body_of_another_form_is_an_error_after_all_tries(endpoint: Endpoint, body: bytes):
    endpoint.answers = [(200, body, 0)] * 2
    error = await failure_of(make_user(endpoint, max_retries=1))
    assert error.failure == Failure.ERROR and len(endpoint.requests) == 2


async def test_odd_results_are_left_out_and_long_ones_cut(endpoint: Endpoint):
    endpoint.answers = [(200, good([1, None, "x", {"title": "T" * 999}, {"snippet": None, "title": 3}]), 0)]
    lines = (await ask(make_user(endpoint), make_call())).text.splitlines()
    assert len(lines) == 2 and len(lines[0]) == MAX_LINE
    endpoint.answers = [(200, b"{}", 0)]
    reply = await ask(make_user(endpoint), make_call())
    assert reply.text == NOTHING_FOUND and reply.facts == {"num_results": 0}


async def test_a_slow_endpoint_is_a_timeout(endpoint: Endpoint):
    endpoint.answers = [(200, good(), 0.5)] * 2
    error = await failure_of(make_user(endpoint, timeout_s=0.05, max_retries=1))
    assert error.failure == Failure.TIMEOUT and len(endpoint.requests) == 2


async def test_an_endpoint_that_is_not_there_is_an_error():
    user = WebSearchUser(RULES, url="http://127.0.0.1:9/search", max_retries=1, backoff_s=0.01)
    assert (await failure_of(user)).failure == Failure.ERROR


@pytest.mark.medium
async def test_requests_at_once_stay_within_the_bound(endpoint: Endpoint):
    endpoint.answers = [(200, good(), 0.02)] * 24
    user = make_user(endpoint, max_concurrent=3)
    replies = await asyncio.gather(*(user.reply(make_call(str(i))) for i in range(24)))
    await user.close()
    assert len(replies) == 24 and endpoint.max_open <= 3


async def test_the_key_comes_from_the_environment_and_stands_nowhere_else(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SEARCH_KEY", KEY)
    endpoint.answers = [(200, good(), 0), (403, KEY.encode(), 0)]
    user = make_user(endpoint, api_key_env="SEARCH_KEY")
    reply = await user.reply(make_call())
    error = await failure_of(user)
    assert [key for _, key in endpoint.requests] == [KEY, KEY]
    shown = f"{reply} {error} {vars(user)}"
    assert KEY not in shown
    logged = " ".join(record.getMessage() for record in caplog.records if record.name != "httpcore")
    assert KEY not in logged


async def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    for value in ("a\nb-4711", "é4711", ""):
        monkeypatch.setenv("SEARCH_KEY", "ok")
        user = make_user(endpoint, api_key_env="SEARCH_KEY")
        monkeypatch.setenv("SEARCH_KEY", value)
        error = await failure_of(user)
        assert "SEARCH_KEY" in str(error) and "4711" not in str(error)


def test_settings_that_cannot_work_are_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SEARCH_KEY", raising=False)
    useless: list[dict[str, Any]] = [
        {"url": "ftp://x/y"},
        {"url": "search"},
        {"url": "http://"},
        {"url": "http://[::"},
        {"url": "http://x", "api_key_env": "SEARCH_KEY"},
        {"url": "http://x", "max_retries": -1},
        {"url": "http://x", "max_concurrent": 0},
    ]
    for options in useless:
        with pytest.raises(ValueError):
            WebSearchUser(RULES, **options)
