"""The processes of a node: found while its raylet lives, ended for certain once it does not. A number
that has gone to another process since is never hit."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def processes_below(pid: int) -> list[psutil.Process]:
    """Those that it has started, and those that they have; none where it is gone."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def end(processes: Iterable[psutil.Process]) -> None:
    """By SIGKILL, stopped ones too; those that are gone stay gone."""
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
