"""HTTP server of the report page during a run: renders it again when the run folder has changed and the page
is requested. Loopback interface only, since dialogues are private."""

import os
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from cluster.config.recipe import BadInput
from cluster.console.log import info
from cluster.console.output import put
from cluster.report.page import page_of
from cluster.run_folder.paths import RunFolder

LOOPBACK = "127.0.0.1"
HOSTS = frozenset({LOOPBACK, "localhost"})
"""A browser that was led here under any other name is refused: another site may have led it."""


class LivePage:
    """The newest page of these runs. Any thread may ask; one at a time makes it."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)
        self._lock = Lock()
        self._version, self._html = "", b""

    def version(self) -> str:
        """Changes when a run folder does."""
        return version_of(self._paths)

    def html(self) -> bytes:
        """Raises FileNotFoundError as `page_of` does."""
        with self._lock:
            version = self.version()  # of before reading: what comes meanwhile makes another page
            if version != self._version:
                page = page_of(self._paths, version=version)
                self._version, self._html = version, page.html.encode()
            return self._html


def version_of(paths: Sequence[Path]) -> str:
    """A few letters for the files that a page is made of, their times and sizes."""
    parts: list[str] = []
    for path in paths:
        folder = RunFolder(path)
        files = [folder.config, folder.metrics, folder.evaluation, folder.validation]
        for file in (*files, *sorted(folder.trajectories.glob("*.parquet"))):
            with suppress(FileNotFoundError):  # a running run may delete some
                stat = file.stat()
                parts.append(f"{file.name} {stat.st_mtime_ns} {stat.st_size}")
    return f"{zlib.crc32(os.linesep.join(parts).encode()):08x}"


class _Handler(BaseHTTPRequestHandler):
    """GET / and GET /version."""

    page: LivePage

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in HOSTS:
            self.send_error(403, "this page is for this machine alone")
        elif self.path == "/":
            try:
                html = self.page.html()
            except FileNotFoundError:
                self.send_error(503, "the run folder changes just now: ask again")
            else:
                self._answer(html, kind="text/html; charset=utf-8")
        elif self.path == "/version":
            self._answer(self.page.version().encode(), kind="text/plain")
        else:
            self.send_error(404)

    def _answer(self, body: bytes, *, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a page asks every few seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a browser may go whenever it likes
            super().handle_error(request, client_address)


def make_server(paths: Sequence[Path], *, port: int) -> ThreadingHTTPServer:
    """A server of the page, not yet serving; port 0 takes any free one. Raises `BadInput` where the port is
    taken."""

    class Handler(_Handler):
        page = LivePage(paths)

    try:
        return _Server((LOOPBACK, port), Handler)
    except OSError as error:
        raise BadInput(
            f"--port {port}: cannot be used ({error.strerror}): give another, or 0 for any"
        ) from None


def serve_page(paths: Sequence[Path], *, port: int) -> None:
    """Serves until Ctrl-C, which is the ordinary end."""
    with make_server(paths, port=port) as server:
        put(f"http://{LOOPBACK}:{server.server_address[1]}/")
        info("Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
