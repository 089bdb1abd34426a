"""Proxy from any cluster node to the hosted models: a request travels through Ray to a replica next to the
model and from there to its local HTTP port.

Serve's proxies run only on nodes with a replica, and listen on loopback: a rollout actor on a node of its own
has none. This replica has one beside it wherever it runs. So no port is opened to the network, and the way is
guarded by Ray's token.
"""

from collections.abc import Mapping
from typing import Any

import httpx
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from simulators.llm_client.http_limits import PLAIN, cap
from simulators.serving.app import HEALTH_CHECK
from simulators.serving.hosted_llm import LOCALHOST, SERVE_PORT
from simulators.serving.port_binding import listen_on_node

MAX_ONGOING_REQUESTS = 4096
"""Requests that the replica carries at a time: it only waits."""
KEPT_HEADERS = ("content-type", "retry-after")
"""Of an answer; the others are about a connection that nobody sees."""
ProxyResponse = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class LlmProxy:
    """Carries requests to this machine's proxy."""

    def __init__(self, port: int):
        listen_on_node()
        self._client = httpx.AsyncClient(
            base_url=f"http://{LOCALHOST}:{port}",
            timeout=None,  # who asks has its own
            limits=httpx.Limits(max_connections=None),
            headers=PLAIN,
            event_hooks=cap(),
            trust_env=False,  # loopback is asked without a proxy of the company
        )

    async def send(self, method: str, path: str, body: bytes) -> ProxyResponse:
        """The answer; status 502 where there is none."""
        try:
            response = await self._client.request(
                method, path, content=body, headers={"content-type": "application/json"}
            )
        except (httpx.HTTPError, ValueError) as error:
            return 502, {}, f"{type(error).__name__}: {error}".encode()
        kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        return response.status_code, kept, response.content


class LlmProxyTransport(httpx.AsyncBaseTransport):
    """What an `httpx.AsyncClient` sends its requests through: the relay."""

    def __init__(self, handle: Any):
        self._handle = handle

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.ConnectError where no replica answers."""
        body = await request.aread()
        try:
            status, headers, content = await self._handle.send.remote(
                request.method, request.url.raw_path.decode(), body
            )
        except (RayError, RayServeException) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise httpx.ConnectError(f"{type(error).__name__}: {first_line}", request=request) from None
        return httpx.Response(status, headers=headers, content=content, request=request)


def relay_name(run: str) -> str:
    """The Serve application of this run's relay."""
    return f"relay-{run}"


def deploy_relay(run: str, *, port: int = SERVE_PORT, resources: Mapping[str, float] | None = None) -> None:
    """Waits until it is up. `resources` are custom Ray resources that it takes, and so where it may run."""
    relay = serve.deployment(
        name="LlmProxy",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        **HEALTH_CHECK,
        ray_actor_options={"num_cpus": 0, "resources": dict(resources or {})},
    )(LlmProxy).bind(port)
    serve.run(relay, name=relay_name(run), route_prefix=None)


def remove_relay(run: str) -> None:
    """Ends it."""
    serve.delete(relay_name(run))


def connect_relay(run: str) -> LlmProxyTransport:
    """The way through this run's relay, for one event loop."""
    return LlmProxyTransport(serve.get_deployment_handle("LlmProxy", app_name=relay_name(run)))
