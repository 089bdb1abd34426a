"""Ray and Serve as this project starts them: only this machine reaches a port; joining needs the token."""

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from cluster.config.run_config import RunConfig
from cluster.ray_cluster.auth_token import find_token
from cluster.ray_cluster.simulator_service import start_simulators, stop_simulators
from cluster.ray_cluster.start import start_ray
from simulators.serving.hosted_llm import SERVE_PORT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
JOIN = "import sys; from cluster.ray_cluster.start import start_ray; start_ray(sys.argv[1])"


def listening() -> dict[int, str]:
    """Every TCP port on which this process and its descendants listen, and the address."""
    me = psutil.Process()
    found: dict[int, str] = {}
    for process in (me, *me.children(recursive=True)):
        try:
            connections = process.net_connections(kind="tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found |= {
            c.laddr.port: c.laddr.ip.removeprefix("::ffff:")  # an IPv4 address on a socket for both
            for c in connections
            if c.status == psutil.CONN_LISTEN
        }
    return found


def test_every_port_is_on_loopback_and_a_token_is_required() -> None:
    before = set(listening())
    config = RunConfig()
    started = start_ray(None)
    try:
        start_simulators(config, http=True)
        ports = {port: ip for port, ip in listening().items() if port not in before}
        assert SERVE_PORT in ports
        assert len(ports) >= 5  # GCS, raylet, object manager, agent, workers
        assert {port: ip for port, ip in ports.items() if not ipaddress.ip_address(ip).is_loopback} == {}
        address = ray.get_runtime_context().gcs_address
        assert address.startswith("127.0.0.1:")
        for token, may_join in ((find_token(), True), ("wrong", False)):
            done = subprocess.run(
                [sys.executable, "-c", JOIN, address],
                cwd=ROOT,
                env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": str(token)},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert (done.returncode == 0) is may_join, done.stderr
    finally:
        stop_simulators(config, and_ray=started)
