"""What is below a process ends with it, if need be by our hand, and nobody else is hit."""

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from cluster.chaos.processes import end, largest_below, processes_below

pytestmark = pytest.mark.medium

SLEEP = "import time; time.sleep(60)"
WORKER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"
RAYLET = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WORKER!r}]); {SLEEP}"
WAIT_S = 20.0


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """With a worker below it, and a core below that."""
    with subprocess.Popen([sys.executable, "-c", RAYLET]) as process:
        below = list[psutil.Process]()
        try:
            deadline = time.monotonic() + WAIT_S
            while len(below) < 2 and time.monotonic() < deadline:
                below = processes_below(process.pid)
                time.sleep(0.05)
            yield process
        finally:
            end(below)
            process.kill()


def test_what_outlives_its_raylet_is_ended_stopped_or_not(raylet: subprocess.Popen[bytes]) -> None:
    below = processes_below(raylet.pid)
    assert len(below) == 2, "the worker and its core"
    below[1].suspend()
    raylet.kill()
    raylet.wait()
    assert all(process.is_running() for process in below), "as vLLM's core outlives a node"
    end(below)
    assert not psutil.wait_procs(below, timeout=WAIT_S)[1]
    end(below)  # they are gone, and stay gone


def test_a_process_that_got_the_number_of_a_dead_one_is_not_hit(
    raylet: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = psutil.Process(raylet.pid)
    monkeypatch.setattr(found, "_ident", (raylet.pid, 1.0))  # found when it was another's
    end([found])
    time.sleep(0.2)
    assert raylet.poll() is None


def test_nothing_is_below_a_process_that_is_gone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert processes_below(gone.pid) == []
    assert largest_below(gone.pid) == gone.pid
