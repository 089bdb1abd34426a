"""Client of Ray's Jobs API: connect, submit, follow, list, stop. Every refusal is one line.

Knows no recipe: a job is a command and the files it runs in.
"""

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.config.recipe import BadInput
from cluster.console.log import info
from cluster.ray_cluster.auth_token import TOKEN, TOKEN_PATH, find_token

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray puts these before any address that its client is given."""
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 60.0
"""Longest silence of the cluster within one request; Ray's own client waits for ever."""
RECONNECT_S = 2.0
PATIENCE_S = 300.0
"""After this long without a connection `follow` gives up; the job itself continues."""
STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "1800"}
"""A stop is a Ctrl-C: the run ends its step and saves, and W&B's process outlives it. Ray's own way, SIGTERM
to both and the end after 3 s, would cut it off."""
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """One job, without its environment variables: Ray keeps those in plain text, and they must not be
    printed."""

    job: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    run: str
    """The run's name; empty for jobs that were not sent by `userrl submit`."""
    started_at: float | None
    """Seconds since 1970."""
    ended_at: float | None
    message: str
    """What Ray says about the status, first line."""

    @property
    def is_over(self) -> bool:
        return self.status in FINAL


class _Client(JobSubmissionClient):
    """With an end to every wait."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        options.setdefault("timeout", REQUEST_TIMEOUT_S)
        return super()._do_request(method, endpoint, **options)


class Jobs:
    """The jobs of one cluster. Its methods raise `BadInput`."""

    def __init__(self, address: str | None = None):
        """`address` is the dashboard's; None: looked up as Ray does, then on this machine."""
        self.address = http_address(address)
        _require_listener(self.address)
        token = find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if token and _is_overheard(self.address):
            info(
                f"the token goes to {self.address} in plain text: a port-forward, a tunnel or https keeps it "
                "private"
            )
        with self._in_one_line(), _asked_for(self.address):
            self._client = _Client(self.address, headers=headers)

    def submit(
        self, command: str, *, job: str, run: str, package: Path, environment: Mapping[str, str]
    ) -> None:
        """Sends a package and starts `command` in it."""
        runtime_env = {"working_dir": str(package), "env_vars": STOP | dict(environment)}
        with self._in_one_line():
            self._client.submit_job(
                entrypoint=command, submission_id=job, runtime_env=runtime_env, metadata={"run": run}
            )

    def state(self, job: str) -> JobState:
        with self._in_one_line(job):
            return _state(self._client.get_job_info(job))

    def list(self) -> list[JobState]:
        """All jobs that were submitted, the newest first."""
        with self._in_one_line():
            jobs = [_state(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.started_at or 0.0, reverse=True)

    def stop(self, job: str) -> bool:
        """Asks it to stop; False where it was over already."""
        with self._in_one_line(job):
            return self._client.stop_job(job)

    def wait(self, job: str) -> JobState:
        """Waits until it is over."""
        while not (state := self.state(job)).is_over:
            time.sleep(RECONNECT_S)
        return state

    def follow(self, job: str, write: Callable[[str], object]) -> JobState:
        """Hands on what the job prints, from its beginning and each part once, until it is over. A lost
        connection is taken up again."""
        self.state(job)  # a job that is not there
        return asyncio.run(self._follow(job, write))

    async def _follow(self, job: str, write: Callable[[str], object]) -> JobState:
        num_written, lost_at = 0, None
        while True:
            position = 0
            try:
                with self._in_one_line(job):
                    async for text in self._client.tail_job_logs(job):
                        position += len(text)
                        if position > num_written:
                            write(text[-(position - num_written) :])
                            num_written = position
                state = await asyncio.to_thread(self.state, job)
                if state.is_over:
                    return state
                lost_at = None
            except BadInput:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > PATIENCE_S:
                    raise
            await asyncio.sleep(RECONNECT_S)

    @contextmanager
    def _in_one_line(self, job: str = "") -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            kind = "another" if find_token() else "a"
            raise BadInput(
                f"{self.address}: {kind} token is wanted: export {TOKEN}, or {TOKEN_PATH} with its file; "
                "on the head node `ray get-auth-token` prints it"
            ) from None
        except (OSError, aiohttp.ClientError) as error:
            raise BadInput(
                f"{self.address}: no answer ({type(error).__name__}): see that the cluster runs and its "
                "dashboard is reached"
            ) from None
        except RuntimeError as error:
            if job and "does not exist" in str(error):
                raise BadInput(f"{job}: no such job at {self.address}: `userrl jobs` lists them") from None
            raise BadInput(f"{self.address}: refused: {_telling_line(str(error))}") from None


@contextmanager
def _asked_for(address: str) -> Iterator[None]:
    """Ray's client prefers the address in its environment variables to its argument, so they are set for the
    call."""
    variable = ADDRESS_VARIABLES[0]
    before = os.environ.get(variable)
    os.environ[variable] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def http_address(address: str | None) -> str:
    """The dashboard's URL. Raises `BadInput` where it is none.

    Example: `http_address("head:8265")` is `"http://head:8265"`.
    """
    named = [os.environ.get(variable, "") for variable in ADDRESS_VARIABLES]
    urls = [value for value in named if value.startswith(("http://", "https://"))]
    text = address or (urls[0] if urls else DEFAULT_ADDRESS)
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    try:
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        is_usable = False
    if not is_usable or "@" in parts.netloc:
        shown = parts.netloc.rpartition("@")[2] if "@" in parts.netloc else text
        raise BadInput(
            f"--address {shown}: must be the dashboard's address, without a password: http://HOST:8265 or "
            "https://HOST"
        )
    return url.rstrip("/")


def _is_overheard(url: str) -> bool:
    """Whether what is sent there leaves this machine in plain text."""
    parts = urlsplit(url)
    try:
        is_local = ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        is_local = parts.hostname == "localhost"
    return parts.scheme == "http" and not is_local


def _require_listener(url: str) -> None:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise BadInput(
            f"--address {url}: no answer within {CONNECT_TIMEOUT_S:g} s ({error}): start the cluster, "
            "forward its dashboard's port (8265) to here, or correct the address"
        ) from None


def _state(details: Any) -> JobState:
    """Of Ray's JobDetails, whose times are milliseconds."""
    return JobState(
        job=details.submission_id or details.job_id or "",
        status=str(details.status),
        command=details.entrypoint,
        run=(details.metadata or {}).get("run", ""),
        started_at=details.start_time and details.start_time / 1000,
        ended_at=details.end_time and details.end_time / 1000,
        message=_first_line(details.message or ""),
    )


def _telling_line(text: str) -> str:
    """The last line of a traceback, else the first one."""
    return _first_line("\n".join(reversed(text.splitlines())) if "Traceback" in text else text)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason was given"
