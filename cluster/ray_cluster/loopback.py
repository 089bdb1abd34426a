"""Ray restricted to the loopback address: started so that every port stays on it, or joined when it listens
only there."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from ray._private import ray_constants, services

LOCALHOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 1.0


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started while this lasts has the address 127.0.0.1, and listens nowhere else.

    Ray's processes (GCS, raylet, workers, object manager, agents, metrics) listen on all interfaces unless
    their node's address is 127.0.0.1; and on Linux `ray.init` puts the machine's outer address in its place,
    since other nodes might want to join. The switch below leaves it: it is how Ray starts on macOS. Ray reads
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER into it once, when it is imported, which has happened by now.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def as_it_listens(address: str) -> Iterator[None]:
    """While this lasts, `ray.init` finds the cluster at `address`, also one that listens on the loopback
    address alone: Ray would put the machine's outer address in its place, and ask there in vain, for ever."""
    found = services.get_ray_address_from_environment(address, None) if address == "auto" else address
    with on_loopback() if found and _is_on_loopback(found) else nullcontext():
        yield


def _is_on_loopback(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if host not in ("localhost", LOCALHOST) or not port.isdecimal():
        return False
    with socket.socket() as outside:
        outside.settimeout(CONNECT_TIMEOUT_S)
        return outside.connect_ex((services.get_node_ip_address(), int(port))) != 0
