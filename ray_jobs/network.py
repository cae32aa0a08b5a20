"""The network interface that workers on several nodes meet through."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import sys

logger = logging.getLogger(__name__)

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915
"""Linux: asks for an interface's IPv4 address, see netdevice(7)."""


def meet_other_nodes() -> None:
    """Lets gloo use the interface by which Ray knows this node, where a group of workers spans several.

    By itself gloo takes what the host's name resolves to. That is loopback on many hosts (127.0.1.1 on
    Debian and Ubuntu), where the workers of other nodes cannot reach it. To be called in a worker, before
    torch's process group is made; a variable that is set already stays.
    """
    import ray
    import ray.train

    context = ray.train.get_context()
    if context.get_local_world_size() == context.get_world_size() or GLOO_INTERFACE in os.environ:
        return
    address = ray.util.get_node_ip_address()
    if name := interface_of(address):
        os.environ[GLOO_INTERFACE] = name
    else:
        logger.warning("no network interface has %s; set %s if workers do not meet", address, GLOO_INTERFACE)


def interface_of(address: str) -> str | None:
    """Name of the interface that has an IPv4 address; None where none has it."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
