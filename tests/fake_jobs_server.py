"""A real HTTP server on loopback that speaks Ray's Jobs API, and remembers what it was asked."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class JobsServer:
    """What the server asks for and says, and what it saw."""

    token: str = ""
    """Requests without it are refused; empty: none is asked for."""
    ends: str = "SUCCEEDED"
    """What becomes of every job once its log was read to the end."""
    log: tuple[str, ...] = ("step 1\n", "step 2\n")
    cut_after: int = 0
    """Parts of the log after which the first reader's connection is cut; 0: never."""
    packages: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_readers: int = 0
    url: str = ""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._checked], client_max_size=100 * 2**20)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._put_package)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_post("/api/jobs/{job}/stop", self._stop)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        said = request.headers.get("Authorization", "")
        if self.token and not said:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token and said != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
        )

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        job = body["submission_id"]
        self.jobs[job] = {
            "type": "SUBMISSION",
            "submission_id": job,
            "status": "RUNNING",
            "start_time": 1_700_000_000_000 + 1000 * len(self.jobs),
            **{key: body.get(key) for key in ("entrypoint", "runtime_env", "metadata")},
        }
        return web.json_response({"job_id": job, "submission_id": job})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    def _job(self, request: web.Request) -> dict[str, Any]:
        job = request.match_info["job"]
        if job not in self.jobs:
            raise web.HTTPNotFound(text=f"Job {job} does not exist")
        return self.jobs[job]

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self._job(request))

    async def _stop(self, request: web.Request) -> web.Response:
        job = self._job(request)
        was_running = job["status"] == "RUNNING"
        if was_running:
            job["status"] = "STOPPED"
        return web.json_response({"stopped": was_running})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        job = self._job(request)
        self.num_readers += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for number, text in enumerate(self.log, start=1):
            await socket.send_str(text)
            if number == self.cut_after and self.num_readers == 1:
                assert request.transport is not None
                request.transport.abort()
                return socket
        if job["status"] == "RUNNING":
            code = (
                {"driver_exit_code": 1, "message": "failed with exit code 1\nmore"}
                if self.ends == "FAILED"
                else {}
            )
            job |= {"status": self.ends, "end_time": job["start_time"] + 60_000, **code}
        return socket


@contextmanager
def serve_jobs(**settings: Any) -> Iterator[JobsServer]:
    """The server, at `url`, in a thread of its own."""
    server, loop, is_up, over = (
        JobsServer(**settings),
        asyncio.new_event_loop(),
        threading.Event(),
        asyncio.Event(),
    )

    async def run() -> None:
        runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        is_up.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert is_up.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()
