"""Where a process is, so that a person finds it, and so that what a dead one leaves behind can be ended."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
import ray

Process = tuple[int, float]
"""A process's number and when it was created: numbers are given again, the pair never is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessInfo:
    """A process of this run, with its children."""

    node_id: str
    """Ray's name of the machine."""
    address: str
    """The machine's IP address."""
    processes: tuple[Process, ...]  # [num_processes]
    """The process itself, then its children and theirs."""

    def __str__(self) -> str:
        return f"pid {self.processes[0][0]} on {self.address}"


def this_process() -> ProcessInfo:
    """This process, in a Ray worker."""
    process = psutil.Process(os.getpid())
    family = [process, *process.children(recursive=True)]
    return ProcessInfo(
        node_id=ray.get_runtime_context().get_node_id(),
        address=ray.util.get_node_ip_address(),
        processes=tuple((one.pid, one.create_time()) for one in family),
    )


def end_processes(processes: Sequence[Process]) -> list[int]:
    """Kills those of them that still live, on this machine, even stopped ones; the numbers of the killed."""
    ended = []
    for pid, created_at in processes:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == created_at and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                ended.append(pid)
    return ended
