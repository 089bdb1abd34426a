"""Location of a process and its children: node, address, process ids. Names a process in messages, and lets
the children of a dead one be killed."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
import ray

Process = tuple[int, float]
"""(pid, creation time): the operating system reuses a pid, the pair is unique."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessInfo:
    """A process of this run, with its children.

    Example: `ProcessInfo(node_id="3f0c...", address="10.0.0.7", processes=((4711, 1760000000.0),))`.
    """

    node_id: str
    """Ray's id of the node."""
    address: str
    """The node's IP address."""
    processes: tuple[Process, ...]  # [num_processes]
    """The process itself, then all its descendants."""

    def __str__(self) -> str:
        return f"pid {self.processes[0][0]} on {self.address}"


def this_process() -> ProcessInfo:
    """This process, which must be a Ray worker."""
    process = psutil.Process(os.getpid())
    family = [process, *process.children(recursive=True)]
    return ProcessInfo(
        node_id=ray.get_runtime_context().get_node_id(),
        address=ray.util.get_node_ip_address(),
        processes=tuple((one.pid, one.create_time()) for one in family),
    )


def end_processes(processes: Sequence[Process]) -> list[int]:
    """Kills those that are still alive on this machine, stopped ones too; returns the pids of the killed."""
    ended = []
    for pid, created_at in processes:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == created_at and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                ended.append(pid)
    return ended
