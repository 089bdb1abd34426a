"""Local Ray cluster with several nodes as the target of chaos, and the job under test in its own process.

Every process that is killed is looked up in this cluster's own tables, so nothing else on the machine can be
hit.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from cluster.chaos.faults import CLASSES, NUM_STUTTERS, STUTTER_S, Fault, Snapshot, has_role
from cluster.chaos.processes import end, largest_below, processes_below
from cluster.config.run_config import RunConfig
from cluster.ray_cluster.placement import Machine
from cluster.ray_cluster.ray_internals import PROCESS_TYPE_RAYLET

NUM_WORKER_NODES = 2
LOOPBACK = "127.0.0.1"
STORE_BYTES = 400 * 2**20
"""Object store of each node: memory that is taken when it is used."""
STOP_TIMEOUT_S = 60.0


class ChaosCluster:
    """A head node, which has the driver and the buffer, and worker nodes, which may die and come back."""

    def __init__(self, machine: Machine):
        self._node_args: dict[str, Any] = {
            "num_cpus": max(2, machine.num_cpus),
            "object_store_memory": STORE_BYTES,
            "node_ip_address": LOOPBACK,
        }
        head = {**self._node_args, "num_gpus": machine.num_gpus, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._stopped: list[psutil.Process] = []
        self._slowed: dict[int, list[psutil.Process]] = {}
        """By raylet: what was below it when it was slowed down, of which it may die."""
        for _ in range(NUM_WORKER_NODES):
            self._cluster.add_node(**self._node_args)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def alive(self) -> dict[str, frozenset[int]]:
        """The processes of the run's living actors, by role; its nodes under `node`."""
        actors = self._cluster.global_state.actor_table(None, None, "ALIVE").values()
        found = {
            role: frozenset(actor["Pid"] for actor in actors if has_role(str(actor["ActorClassName"]), role))
            for role in CLASSES
        }
        return {**found, "node": frozenset(_raylet_of(node).pid for node in self._nodes if _lives(node))}

    def strike(self, fault: Fault, *, victim: int) -> frozenset[int]:
        """Kills, stops or slows down a process of this cluster; the processes that are to be replaced."""
        if fault.kind == "node":
            return self._kill_node(victim)
        if fault.kind == "slow_node":
            self._slow_down(victim)
            return frozenset()
        with suppress(psutil.NoSuchProcess):
            target = largest_below(victim) if fault.kind in ("core", "hung_engine") else victim
            process = psutil.Process(target)
            if fault.is_hang:
                self._stopped.append(process)
                process.suspend()
            else:
                process.kill()
        return frozenset({victim})

    def bring_back_nodes(self) -> None:
        """Starts a replacement for each dead node, as an autoscaler would."""
        for node in self._nodes:
            raylet = _raylet_of(node).pid
            if not _lives(node):
                self._cluster.remove_node(node, allow_graceful=False)
                end(self._slowed.pop(raylet, ()))
        while len(self._nodes) < NUM_WORKER_NODES:
            with suppress(TimeoutError):  # it is there, and comes late
                self._cluster.add_node(**self._node_args)

    def shutdown(self) -> None:
        """Ends every process of the cluster, stopped ones too."""
        below = [
            process
            for node in self._cluster.list_all_nodes()
            for raylet in node.all_processes.get(PROCESS_TYPE_RAYLET, ())  # none where Ctrl-C ended it first
            for process in processes_below(raylet.process.pid)
        ]
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._cluster.shutdown()
        end(below)

    @property
    def _nodes(self) -> list[Any]:
        """All but the head."""
        return list(self._cluster.worker_nodes)

    def _slow_down(self, raylet: int) -> None:
        """Returns once its network is as it was."""
        self._slowed[raylet] = processes_below(raylet)
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(raylet)
            self._stopped.append(process)
            for _ in range(NUM_STUTTERS):
                for blow in (process.suspend, process.resume):
                    blow()
                    time.sleep(STUTTER_S)

    def _kill_node(self, raylet: int) -> frozenset[int]:
        node = next(node for node in self._nodes if _raylet_of(node).pid == raylet)
        below = processes_below(raylet)
        # It is first, and so tells of no worker's death: a machine that is gone does not.
        _raylet_of(node).kill()
        end(below)  # workers watch their raylet, but vLLM's core, below one of them, does not
        self._cluster.remove_node(node, allow_graceful=False)
        return frozenset({raylet, *(process.pid for process in below)})


class Job:
    """The run, as `userrl train` in a process of its own; killed, it can be started again."""

    def __init__(self, config: RunConfig, *, folder: Path, address: str):
        self.log = folder / "driver.log"
        self._recipe = folder / "recipe.toml"
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._recipe.write_text(config.to_toml(), encoding="utf-8")

    def start(self) -> None:
        """Starts or resumes the run."""
        command = [sys.executable, "-m", "cluster.cli", "train", str(self._recipe)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--ray.address", self._address], stdout=log, stderr=log, env=_environment()
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None, "start() comes first"
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """As Ctrl-C twice, then as `kill -9`."""
        if self.exit_code is None and self._process is not None:
            for _ in range(2):
                self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            if self.exit_code is None:
                self.kill()


def look(cluster: ChaosCluster, job: Job) -> Snapshot:
    """The run from outside."""
    text = job.log.read_text(encoding="utf-8", errors="replace") if job.log.exists() else ""
    driver = frozenset({job.pid}) if job.exit_code is None else frozenset[int]()
    return Snapshot(alive={**cluster.alive(), "driver": driver}, log=text)


def _raylet_of(node: Any) -> "subprocess.Popen[bytes]":
    return node.all_processes[PROCESS_TYPE_RAYLET][0].process


def _lives(node: Any) -> bool:
    return _raylet_of(node).poll() is None


def _environment() -> Mapping[str, str]:
    """The job's own: it must not take another cluster for its own."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
