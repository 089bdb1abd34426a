"""Proxy from any cluster node to the hosted models: a request travels through Ray to a replica next to the
model and from there to its local HTTP port.

Serve's proxies run only on nodes with a replica, and listen on loopback: a rollout actor on another node has
none. This deployment's replica always has a local proxy. So no port is opened to the network, and access is
protected by Ray's token.
"""

from collections.abc import Mapping
from typing import Any

import httpx
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from simulators.llm_client.http_limits import UNCOMPRESSED, size_limit_hooks
from simulators.serving.app import HEALTH_CHECK
from simulators.serving.hosted_llm import LOCALHOST, SERVE_PORT
from simulators.serving.port_binding import listen_on_node

MAX_ONGOING_REQUESTS = 4096
"""Concurrent requests of the replica, which only waits for them."""
KEPT_HEADERS = ("content-type", "retry-after")
"""Response headers that are passed on; the others concern the internal connection."""
ProxyResponse = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class LlmProxy:
    """Forwards requests to this machine's Serve proxy."""

    def __init__(self, port: int):
        listen_on_node()
        self._client = httpx.AsyncClient(
            base_url=f"http://{LOCALHOST}:{port}",
            timeout=None,  # the caller has its own timeout
            limits=httpx.Limits(max_connections=None),
            headers=UNCOMPRESSED,
            event_hooks=size_limit_hooks(),
            trust_env=False,  # loopback must not go through a company's proxy
        )

    async def send(self, method: str, path: str, body: bytes) -> ProxyResponse:
        """The response; status 502 if there is none."""
        try:
            response = await self._client.request(
                method, path, content=body, headers={"content-type": "application/json"}
            )
        except (httpx.HTTPError, ValueError) as error:
            return 502, {}, f"{type(error).__name__}: {error}".encode()
        kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        return response.status_code, kept, response.content


class LlmProxyTransport(httpx.AsyncBaseTransport):
    """Transport of an `httpx.AsyncClient` that sends requests through the `LlmProxy` deployment."""

    def __init__(self, handle: Any):
        self._handle = handle

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.ConnectError if no replica answers."""
        body = await request.aread()
        try:
            status, headers, content = await self._handle.send.remote(
                request.method, request.url.raw_path.decode(), body
            )
        except (RayError, RayServeException) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise httpx.ConnectError(f"{type(error).__name__}: {first_line}", request=request) from None
        return httpx.Response(status, headers=headers, content=content, request=request)


def proxy_app_name(run: str) -> str:
    """The Serve application of this run's proxy."""
    return f"relay-{run}"


def deploy_llm_proxy(
    run: str, *, port: int = SERVE_PORT, resources: Mapping[str, float] | None = None
) -> None:
    """Deploys the proxy and waits until it is up. `resources` are its custom Ray resources, which restrict
    its nodes."""
    proxy = serve.deployment(
        name="LlmProxy",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        **HEALTH_CHECK,
        ray_actor_options={"num_cpus": 0, "resources": dict(resources or {})},
    )(LlmProxy).bind(port)
    serve.run(proxy, name=proxy_app_name(run), route_prefix=None)


def remove_llm_proxy(run: str) -> None:
    """Deletes the proxy's application."""
    serve.delete(proxy_app_name(run))


def connect_llm_proxy(run: str) -> LlmProxyTransport:
    """A transport through this run's proxy, for one event loop."""
    return LlmProxyTransport(serve.get_deployment_handle("LlmProxy", app_name=proxy_app_name(run)))
