"""Ray's own autoscaler: nodes come for rollout actors that have no place, and go when theirs have left.

Its nodes are raylets on this machine, started by Ray's own test provider: the wheel lacks the file by which
that one is found under its name, so it is named by its class, and the rest of the file stands here.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from cluster.ray_cluster.start import reachable
from cluster.workers.play_orders import OrderPlayer
from tests.cluster.workers.test_rollout_actors_on_changing_nodes import orders, start_one
from tests.learners.learner_groups import write_policy

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(420)]
LOOPBACK = "127.0.0.1"
MOST_NODES = 4
WAIT_S = 120.0
MANY = 96
"""Number of groups that makes a second or two of start-up negligible."""
NO_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
    *("rsync_exclude", "rsync_filter"),
)


def autoscaling(gcs_address: str) -> dict[str, object]:
    """A head without room for a rollout actor, and up to four nodes with room for one."""

    def node_type(resources: dict[str, float], *, most: int) -> dict[str, object]:
        return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}

    return {
        "cluster_name": "here",
        "max_workers": MOST_NODES,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": node_type({"CPU": 0}, most=0),
            "rollouts": node_type({"CPU": 1, "object_store_memory": 100 * 2**20}, most=MOST_NODES),
        },
        **{"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False},
        **{name: [] for name in NO_COMMANDS},
    }


@pytest.fixture
def autoscaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    address = f"{LOOPBACK}:{port}"
    config = tmp_path / "autoscaling.json"
    config.write_text(json.dumps(autoscaling(address)))
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",  # a node that joins by address has no token
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of it listens on the loopback address alone
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }.items():
        monkeypatch.setenv(name, value)
    command = ["ray", "start", "--head", "--block", "--num-cpus=0", "--include-dashboard=false"]
    command += [f"--port={port}", f"--node-ip-address={LOOPBACK}", f"--autoscaling-config={config}"]
    head = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(port))
        with reachable(address):
            ray.init(address=address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in family:  # only what this test has started
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(WAIT_S)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def num_nodes() -> int:
    """Number of nodes other than the head."""
    return sum(node["Alive"] for node in ray.nodes()) - 1


def play(player: OrderPlayer, *, num_groups: int = 32) -> float:
    """Seconds that a list of orders takes; each is delivered once."""
    began, wanted = time.monotonic(), orders(num_groups)
    _, groups = player.run(wanted, policy="expert", finish=lambda tables: None)
    assert [group.order for group in groups] == wanted
    return time.monotonic() - began


@pytest.mark.usefixtures("autoscaled")
def test_from_one_node_to_four_and_back_throughput_scales_and_no_group_is_lost(tmp_path: Path) -> None:
    rollouts, player = start_one(str(write_policy(tmp_path / "policy")))

    def play_until(num_actors: int) -> float:
        rollouts.scale(num_actors)
        deadline = time.monotonic() + WAIT_S
        while rollouts.membership.num_active != num_actors or num_nodes() != num_actors:
            assert time.monotonic() < deadline
            play(player)
        return play(player, num_groups=MANY)

    alone_s = play_until(1)
    together_s = play_until(MOST_NODES)
    assert together_s < 0.6 * alone_s
    play_until(1)
