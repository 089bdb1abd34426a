"""Restriction of a Serve replica's gRPC port to its node's own address.

Every replica of Ray 2.60 has a gRPC server for calls of other replicas (ray/serve/_private/replica.py). It
unpickles its input, requires no token, and by default listens on all interfaces of the machine.
"""

from typing import Any

import ray
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve.exceptions import RayServeException


def listen_on_node() -> None:
    """Called at the start of a deployment's constructor, before that server starts: it then listens on the
    node's address, which is loopback if Ray was started so. Does nothing outside a replica."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return
    address = ray.util.get_node_ip_address()
    host = f"[{address}]" if ":" in address else address

    def bind_on_node(server: Any, asked: str) -> int:
        return add_port_to_grpc_server(server, asked.replace("[::]", host))

    setattr(replica, "add_port_to_grpc_server", bind_on_node)  # noqa: B010 - pyright forbids the plain way
