"""Processes of a cluster node: finds them while the raylet lives and kills the survivors once it is dead. A
process id that the system has reused is never killed."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def processes_below(pid: int) -> list[psutil.Process]:
    """All descendants of a process; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def end(processes: Iterable[psutil.Process]) -> None:
    """Kills the processes by SIGKILL, stopped ones included; ignores those that have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def largest_below(pid: int) -> int:
    """By memory: vLLM's core below the engine's actor. `pid` itself where nothing is below it yet."""
    sizes: dict[int, int] = {}
    for process in processes_below(pid):
        with suppress(psutil.NoSuchProcess):
            sizes[process.pid] = process.memory_info().rss
    return max(sizes, key=lambda one: sizes[one], default=pid)
