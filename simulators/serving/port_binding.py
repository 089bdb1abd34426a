"""Restriction of a Serve replica's gRPC port to its node's own address.

Every replica of Ray 2.60 has a gRPC server for calls of other replicas (ray/serve/_private/replica.py). It
unpickles what it is sent, asks for no token, and would listen on all interfaces of the machine.
"""

from typing import Any

import ray
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve.exceptions import RayServeException


def listen_on_node() -> None:
    """Called where a deployment's own code begins, which is before that server starts: it listens where this
    node does, which is the loopback address where Ray was started so. Nothing outside a replica."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return
    address = ray.util.get_node_ip_address()
    host = f"[{address}]" if ":" in address else address

    def bind_on_node(server: Any, asked: str) -> int:
        return add_port_to_grpc_server(server, asked.replace("[::]", host))

    setattr(replica, "add_port_to_grpc_server", bind_on_node)  # noqa: B010 - pyright forbids the plain way
