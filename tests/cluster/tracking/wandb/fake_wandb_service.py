"""A W&B service for tests: takes runs, their histories and views over HTTP, knows no artifacts, can fall
silent."""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROJECT = {"id": "p", "name": "userrl", "entity": {"id": "e", "name": "tester"}}


class WandbService:
    """The received runs and histories."""

    def __init__(self) -> None:
        self.port = 0
        self.lines: dict[int, dict[str, Any]] = {}
        """History by its place in the file that W&B keeps of it."""
        self.views: list[dict[str, Any]] = []
        """Views of projects, as they were saved."""
        self.has_begun = threading.Event()
        """A run was made."""
        self.is_silent = threading.Event()
        """Once set, no request is answered."""
        self.closing = threading.Event()

    @property
    def steps(self) -> list[int]:
        """GRPO steps in the order in which W&B has them."""
        return [line["step"] for _, line in sorted(self.lines.items()) if "step" in line]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """To a GraphQL request."""
        variables = body.get("variables") or {}
        operation = body["query"].split("(")[0].split("{")[0].split()[1]
        run = {
            "id": "r",
            "name": variables.get("name"),
            "displayName": "run",
            "config": "{}",
            "project": PROJECT,
        }
        run |= {"sweepName": None, "historyLineCount": len(self.lines)}
        if operation == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": {**run, **self._known()} if self.lines else None}}
        if operation == "UpsertBucket":
            self.has_begun.set()
            return {"upsertBucket": {"bucket": run, "inserted": not self.lines}}
        if operation == "Viewer":
            user = {"id": "u", "entity": "tester", "username": "tester", "email": "a@b.c", "flags": "{}"}
            return {"viewer": {**user, "teams": {"edges": []}}}
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "u", "entity": "tester"}}
        if operation == "UpsertView2":
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"http://127.0.0.1:{self.port}/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        raise KeyError(operation)

    def _known(self) -> dict[str, Any]:
        last = json.dumps(self.lines[max(self.lines)])
        counts = {"historyLineCount": len(self.lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]"}
        return {**counts, **tails, "summaryMetrics": "{}", "wandbConfig": '{"t": 1}', "tags": [], "notes": ""}

    def take(self, files: dict[str, Any]) -> None:
        """Lines of a run's files."""
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for place, line in enumerate(history["content"], history["offset"]):
            self.lines[place] = json.loads(line)


@contextmanager
def wandb_service() -> Iterator[WandbService]:
    """Starts one on a loopback port."""
    service = WandbService()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if service.is_silent.is_set():
                service.closing.wait()
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            reply: dict[str, Any] = {}
            if self.path == "/graphql":
                try:
                    reply = {"data": service.answer(json.loads(body))}
                except KeyError:
                    reply = {"data": None, "errors": [{"message": "unknown request"}]}
            elif self.path.endswith("/file_stream"):
                service.take(json.loads(body).get("files") or {})
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever is killed leaves its connection."""

    server = Server(("127.0.0.1", 0), Handler)
    service.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        service.closing.set()
        server.shutdown()
        server.server_close()
