"""Runs that are killed, and runs whose W&B is unreachable, hangs or refuses: no row is lost or sent twice."""

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config.run_config import load
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker
from cluster.tracking.wandb import media
from cluster.tracking.wandb import run as wandb_run
from cluster.tracking.wandb.internals import parts_of
from cluster.tracking.wandb.media import MediaBuilder
from cluster.workers.restart import LostBufferError
from tests.cluster.sample_run_folders import make_group, write_step
from tests.cluster.tracking.wandb.fake_wandb_service import wandb_service
from tests.cluster.tracking.wandb.tracked_run import METRICS
from tests.cluster.tracking.wandb.wandb_records import numbers, rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent.parent.parent
WAIT_S = 60.0


def run(folder: RunFolder, *words: object, **environment: str) -> "subprocess.Popen[str]":
    """The tracker alone, in its own process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = folder.path.parent  # so that no key is found
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.cluster.tracking.wandb.tracked_run",
            str(folder.path),
            *map(str, words),
        ],
        cwd=ROOT,
        env={**clean, "HOME": str(home), "NETRC": str(home / "netrc"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fresh(path: Path, *, mode: str) -> RunFolder:
    folder = RunFolder(path)
    names = {"run.name": path.name, "run.folder": str(path.parent), "tracking.mode": mode}
    folder.create(load(None, names))
    return folder


@pytest.mark.soak
def test_a_restarted_run_is_not_disturbed_by_its_old_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_run, "RESTART_TIMEOUT_S", 1.0)
    monkeypatch.setattr(media, "ARCHIVE_TIMEOUT_S", WAIT_S)
    is_waiting, wait = threading.Event(), MediaBuilder._await

    def wait_noticed(builder: MediaBuilder, file: Path, *, step: int) -> None:
        is_waiting.set()
        wait(builder, file, step=step)

    monkeypatch.setattr(MediaBuilder, "_await", wait_noticed)
    folder = fresh(tmp_path / "restarted", mode="offline")
    config = load(folder.config)
    with pytest.raises(LostBufferError), Tracker(folder, config=config) as first:
        first.log_step(1, metrics=METRICS)
        assert is_waiting.wait(timeout=WAIT_S), "for the step's file"
        raise LostBufferError("the buffer has died")
    with Tracker(folder, config=config, resume_step=1) as second:
        deadline = time.monotonic() + WAIT_S
        while len(parts_of(folder.wandb)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        left = [thread for thread in threading.enumerate() if thread.name == "wandb"]
        assert len(left) == 2, "the first one's still waits for its file"
        for step in (1, 2, 3):
            tables = [make_group(step, 0, text="hello")[0]]
            write_step(folder.trajectories / f"step-{step:05d}.parquet", tables, step=step)
        left[0].join(timeout=WAIT_S)
        for step in (2, 3):
            second.log_step(step, metrics=METRICS)
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    assert "W&B" not in capsys.readouterr().err


@pytest.mark.parametrize("kills_all", [False, True], ids=["the run", "the run and W&B's process"])
def test_a_killed_run_resumes_without_lost_or_duplicate_rows(tmp_path: Path, kills_all: bool) -> None:
    folder = fresh(tmp_path / "killed", mode="offline")
    first = run(folder, 0, 1, 1000, 30, 0.2)
    assert first.stdout is not None
    deadline = time.monotonic() + WAIT_S
    while not parts_of(folder.wandb) or first.stdout.readline() != "logged 12\n":
        assert time.monotonic() < deadline
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    for process in family if kills_all else []:
        process.kill()
    psutil.wait_procs(family, timeout=WAIT_S)
    last = json.loads(folder.metrics.read_text().splitlines()[-1])["step"]

    second = run(folder, last, last - 2, last + 3, 30, 0)
    _, errors = second.communicate(timeout=WAIT_S)
    assert second.returncode == 0, errors
    assert "W&B" not in errors
    assert [row["step"] for row in rows(folder)] == list(range(1, last + 4))
    assert numbers(folder) == list(range(last + 3))
    parts = parts_of(folder.wandb)
    assert len(parts) == 2
    assert len({part.name for part in parts}) == 1, "it is the same W&B run"


@pytest.mark.soak
def test_a_run_that_resumes_earlier_is_a_new_wandb_run_with_all_valid_rows(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "back", mode="offline")
    for resume_step, last in ((0, 4), (2, 5)):  # nothing is known of steps 3 and 4 any more
        process = run(folder, resume_step, resume_step + 1, last, 30, 0)
        assert process.wait(timeout=WAIT_S) == 0
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5]
    assert len({part.name for part in parts_of(folder.wandb)}) == 2


class Refusing(http.server.BaseHTTPRequestHandler):
    """Removes all keys."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def unreachable() -> Iterator[int]:
    """A port without a listener."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        yield place.getsockname()[1]


@contextmanager
def hanging() -> Iterator[int]:
    """A port that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as place:
        yield place.getsockname()[1]


@contextmanager
def refusing() -> Iterator[int]:
    """A port that answers 401."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.soak
@pytest.mark.parametrize("service", [unreachable, hanging, refusing])
def test_an_unreachable_wandb_costs_one_warning(service: Any, tmp_path: Path) -> None:
    folder = fresh(tmp_path / "down", mode="online")
    with service() as port:
        process = run(folder, 0, 1, 30, 3, 0.02, **online(port))
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert errors.count("W&B: ") == 1
    spent = re.search(r"longest ([\d.]+) close ([\d.]+)", output)
    assert spent is not None
    assert float(spent[1]) < 0.5, "no step waits for W&B"
    assert float(spent[2]) < 30, "nor does the end"
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert [row["step"] for row in rows(folder)] == list(range(1, 31)), "it is recorded offline"
    assert rows(folder)[-1]["rollout/reward/mean"] == METRICS["rollout/reward/mean"]


def online(port: int) -> dict[str, str]:
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40}


@pytest.mark.soak
def test_a_killed_run_resumes_in_the_same_online_run_with_each_step_once(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "online", mode="online")
    with wandb_service() as service:
        first = run(folder, 0, 1, 1000, 30, 0.2, **online(service.port))
        deadline = time.monotonic() + WAIT_S
        while len(service.lines) < 5:  # some are there, others on their way
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=WAIT_S)
        last = json.loads(folder.metrics.read_text().splitlines()[-1])["step"]
        second = run(folder, last, last - 2, last + 3, 30, 0, **online(service.port))
        _, errors = second.communicate(timeout=WAIT_S)
    assert second.returncode == 0, errors
    assert "W&B" not in errors
    assert service.steps == list(range(1, last + 4))


def test_offline_rows_are_sent_when_the_run_resumes_online(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "later", mode="online")
    with unreachable() as port:
        assert run(folder, 0, 1, 5, 2, 0, **online(port)).wait(timeout=WAIT_S) == 0
    with wandb_service() as service:
        assert run(folder, 5, 6, 8, 30, 0, **online(service.port)).wait(timeout=WAIT_S) == 0
    assert service.steps == list(range(1, 9))
    offline = [part for part in parts_of(folder.wandb) if part.parent.name.startswith("offline-")]
    assert offline and all(part.with_suffix(".wandb.synced").exists() for part in offline), (
        "sent once is enough"
    )


@pytest.mark.soak
def test_a_wandb_that_stops_responding_delays_no_step_and_loses_no_row(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "silent", mode="online")
    with wandb_service() as service:
        process = run(folder, 0, 1, 40, 8, 0.2, **online(service.port))
        assert service.has_begun.wait(timeout=WAIT_S)
        time.sleep(1.0)
        service.is_silent.set()
        output, errors = process.communicate(timeout=2 * WAIT_S)
        assert process.returncode == 0, errors
    assert errors.count("W&B: ") == 1
    spent = re.search(r"longest ([\d.]+)", output)
    assert spent is not None
    assert float(spent[1]) < 0.5
    assert [row["step"] for row in rows(folder)] == list(range(1, 41)), "W&B's own file has all of it"
