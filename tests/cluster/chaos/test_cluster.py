"""Nodes under chaos, with a plain process as each node's raylet: what dies with them and what comes back."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from ray._private.ray_constants import PROCESS_TYPE_RAYLET

from cluster.chaos import cluster as chaos_cluster
from cluster.chaos.cluster import NUM_WORKER_NODES, ChaosCluster
from cluster.chaos.faults import Fault, FaultKind
from cluster.chaos.processes import end, processes_below
from cluster.ray_cluster.placement import Machine

pytestmark = pytest.mark.medium

SLEEP = "import time; time.sleep(60)"
RAYLET = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"
WAIT_S = 20.0


class PlainNode:
    def __init__(self) -> None:
        self.raylet = subprocess.Popen([sys.executable, "-c", RAYLET])
        info: Any = type("Info", (), {"process": self.raylet})
        self.all_processes = {PROCESS_TYPE_RAYLET: [info]}


class PlainCluster:
    """Has Ray's names, and no Ray. Its nodes come late where they are to."""

    def __init__(self, **_: object):
        self.head_node = PlainNode()
        self.worker_nodes = set[PlainNode]()
        self.is_slow = False

    def add_node(self, **_: object) -> None:
        self.worker_nodes.add(PlainNode())
        if self.is_slow:
            raise TimeoutError("not in the table of nodes yet")

    def remove_node(self, node: PlainNode, *, allow_graceful: bool) -> None:
        assert not allow_graceful
        node.raylet.kill()
        node.raylet.wait()
        self.worker_nodes.remove(node)

    def list_all_nodes(self) -> list[PlainNode]:
        return [self.head_node, *self.worker_nodes]

    def shutdown(self) -> None:
        for node in self.list_all_nodes():
            node.raylet.kill()
            node.raylet.wait()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosCluster]:
    monkeypatch.setattr(chaos_cluster, "Cluster", PlainCluster)
    monkeypatch.setattr(chaos_cluster, "STUTTER_S", 0.01)
    cluster = ChaosCluster(Machine(num_cpus=1, num_gpus=0))
    below: list[psutil.Process] = []
    for node in plain(cluster).list_all_nodes():
        below += worker_of(node)
    yield cluster
    cluster.shutdown()
    assert not psutil.wait_procs(below, timeout=WAIT_S)[1], "nothing is left behind"


def plain(cluster: ChaosCluster) -> PlainCluster:
    inner: Any = cluster._cluster
    return inner


def worker_of(node: PlainNode) -> list[psutil.Process]:
    deadline = time.monotonic() + WAIT_S
    while not (below := processes_below(node.raylet.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return below


def fault(kind: FaultKind) -> Fault:
    return Fault(title=f"fault 1/1 {kind}", kind=kind, calm_s=0.0, pick=0.0)


def test_what_is_on_a_node_dies_with_it_and_another_comes_in_its_place(cluster: ChaosCluster) -> None:
    victim, other = plain(cluster).worker_nodes
    below = processes_below(victim.raylet.pid)
    struck = cluster.strike(fault("node"), victim=victim.raylet.pid)
    assert struck == {victim.raylet.pid, *(process.pid for process in below)}
    assert not psutil.wait_procs(below, timeout=WAIT_S)[1], "it watches no raylet, and is ended all the same"
    assert processes_below(other.raylet.pid), "the other node is whole"
    cluster.bring_back_nodes()
    assert victim not in plain(cluster).worker_nodes
    assert len(plain(cluster).worker_nodes) == NUM_WORKER_NODES


def test_a_node_that_ended_by_itself_is_replaced_and_what_it_left_is_ended(cluster: ChaosCluster) -> None:
    victim, other = plain(cluster).worker_nodes
    below = processes_below(victim.raylet.pid)
    assert cluster.strike(fault("slow_node"), victim=victim.raylet.pid) == frozenset()
    cluster.bring_back_nodes()
    assert plain(cluster).worker_nodes == {victim, other}, "it lives"
    victim.raylet.kill()  # as Ray ends one that it took for dead
    victim.raylet.wait()
    plain(cluster).is_slow = True
    cluster.bring_back_nodes()
    nodes = plain(cluster).worker_nodes
    assert victim not in nodes and other in nodes and len(nodes) == NUM_WORKER_NODES
    assert not psutil.wait_procs(below, timeout=WAIT_S)[1]


def test_a_stopped_process_is_ended_with_the_cluster(cluster: ChaosCluster) -> None:
    node = next(iter(plain(cluster).worker_nodes))
    (worker,) = processes_below(node.raylet.pid)
    try:
        assert cluster.strike(fault("hung_rollout"), victim=worker.pid) == {worker.pid}
        deadline = time.monotonic() + WAIT_S
        while worker.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cluster.shutdown()
        assert not psutil.wait_procs([worker], timeout=WAIT_S)[1]
    finally:
        end([worker])
