"""Ray restricted to the loopback address: started so that every port stays on it, or joined when it listens
only there."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from cluster.ray_cluster.ray_internals import keep_loopback_address, outer_address, running_cluster

LOCALHOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 1.0


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started while this lasts has the address 127.0.0.1, and listens nowhere else.

    Ray's processes (GCS, raylet, workers, object manager, agents, metrics) listen on all interfaces unless
    their node's address is 127.0.0.1.
    """
    with keep_loopback_address():
        yield


@contextmanager
def as_it_listens(address: str) -> Iterator[None]:
    """While this lasts, `ray.init` finds the cluster at `address`, also one that listens on the loopback
    address alone: Ray would put the machine's outer address in its place, and ask there in vain, for ever."""
    found = running_cluster(address) if address == "auto" else address
    with on_loopback() if found and _is_on_loopback(found) else nullcontext():
        yield


def _is_on_loopback(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if host not in ("localhost", LOCALHOST) or not port.isdecimal():
        return False
    with socket.socket() as outside:
        outside.settimeout(CONNECT_TIMEOUT_S)
        return outside.connect_ex((outer_address(), int(port))) != 0
