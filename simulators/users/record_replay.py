"""Recording and replay of user replies: a run can be repeated without its user model.

The lookup key covers the version of the gym, the persona, the history, and the question with its seed. Files
are JSON lines, one file per process, one write per reply: a killed process damages at most its last line.
"""

import asyncio
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from simulators.gym import Gym
from simulators.input_limits import check_file_size
from simulators.user import Failure, SimulatorError, User, UserCall, UserReply

SIMULATOR_VERSION = "1"
"""To be increased when the meaning of recorded replies changes: older records are then not used."""
MAX_KEPT = 100_000
"""Replies that a recorder keeps in memory, for equal calls."""


def version_of(gym: Gym) -> str:
    """Hash of the gym's rules as the policy reads them and of `SIMULATOR_VERSION`."""
    return _digest([SIMULATOR_VERSION, gym.name, gym.system])[:16]


def key_of(call: UserCall, *, version: str) -> str:
    """32 hex digits that identify a call: equal for equal calls on every machine."""
    said_before = _digest([list(pair) for pair in call.history])
    about = [dict(call.scenario), dict(call.view)]
    asked = [call.gym, version, call.persona.name, call.choice, call.question, call.seed]
    return _digest([asked, said_before, about])[:32]


class RecordingUser:
    """A `User` that records the replies of another one.

    Equal calls get the same reply: the inner user is called once, even for concurrent calls, and only the
    first reply carries the cost. Otherwise the record would hold several replies to one call.
    """

    def __init__(self, inner: User, path: Path | str, *, gyms: Mapping[str, Gym]):
        """`path`: the folder of the record; this process adds its own file at the first reply."""
        self._inner = inner
        self._folder = Path(path)
        self._versions = {name: version_of(gym) for name, gym in gyms.items()}
        self._file: int | None = None
        self._replies: dict[str, UserReply] = {}
        self._asking: dict[str, asyncio.Task[UserReply]] = {}

    async def reply(self, call: UserCall) -> UserReply:
        """The inner user's reply, new or earlier. Failures are not recorded."""
        key = key_of(call, version=self._versions.get(call.gym, ""))
        if key in self._replies:
            return _without_cost(self._replies[key])
        # Shielded: a cancelled dialogue does not cancel the call for the others.
        if key in self._asking:
            return _without_cost(await asyncio.shield(self._asking[key]))
        task = self._asking[key] = asyncio.create_task(self._ask(key, call))
        task.add_done_callback(lambda task: self._finish(key, task))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Closes the file. A later reply opens another."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def _ask(self, key: str, call: UserCall) -> UserReply:
        reply = await self._inner.reply(call)
        self._write({"key": key, "gym": call.gym, "persona": call.persona.name, "reply": asdict(reply)})
        if len(self._replies) >= MAX_KEPT:
            self._replies.pop(next(iter(self._replies)))
        self._replies[key] = reply
        return reply

    def _finish(self, key: str, task: "asyncio.Task[UserReply]") -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved, even if all waiting dialogues were cancelled

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._file, json.dumps(row).encode() + b"\n")  # unbuffered: survives a kill of this process


class ReplayUser:
    """A `User` that answers from a recording; rows name the recorded simulator."""

    def __init__(self, path: Path | str, *, gyms: Mapping[str, Gym], name: str = "replay"):
        """Reads the folder of a record or one of its files. Raises ValueError if it is invalid. `name` is the
        simulator's, for failures."""
        self._name = name
        self._path = Path(path)
        self._versions = {name: version_of(gym) for name, gym in gyms.items()}
        self._replies = _read(self._path)

    async def reply(self, call: UserCall) -> UserReply:
        """The recorded reply. Raises `SimulatorError` if this call was never recorded."""
        reply = self._replies.get(key_of(call, version=self._versions.get(call.gym, "")))
        if reply is None:
            text = (
                f"{self._name}: {call.gym}: the record {self._path} holds no reply to {call.question[:80]!r} "
                f"after {len(call.history)} replies (seed {call.seed}, persona {call.persona.name}): replay "
                "the run with its own seed, recipe, policy and version, or record it again"
            )
            raise SimulatorError(text, Failure.ERROR, self._name)
        return reply


def _without_cost(reply: UserReply) -> UserReply:
    return replace(reply, num_tokens=0, latency_s=0.0, num_retries=0, concurrency=0)


def _read(path: Path) -> dict[str, UserReply]:
    """All replies by key. Of two replies to the same call, the first in file order is used."""
    if not path.exists():
        raise ValueError(f"path={path}: no such record: run once with `record` set to this folder")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    replies: dict[str, UserReply] = {}
    for file in files:
        check_file_size(file.stat().st_size, place=str(file))
        lines = file.read_bytes().split(b"\n")
        # What follows the last line break is empty, or was cut short when its process was killed.
        for number, line in enumerate(lines[:-1], start=1):
            key, reply = _parse(line, where=f"{file}:{number}")
            replies.setdefault(key, reply)
    if not replies:
        raise ValueError(f"path={path}: holds no reply: run once with `record` set to this folder")
    return replies


def _parse(line: bytes, *, where: str) -> tuple[str, UserReply]:
    try:
        row = json.loads(line)
        return row["key"], UserReply(**row["reply"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{where}: not a recorded reply ({type(error).__name__}: {error}): take this line out, or record "
            "the run again"
        ) from None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
