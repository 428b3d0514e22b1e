"""Where workers listen: on loopback if they can, on their nodes' addresses if they must. Pure.

Does not cover: asking Ray (``cluster.ray_cluster``), the doors for clients (``cluster.launch``).
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.plan import Slot
from core.errors import Unavailable

LOOPBACK = "127.0.0.1"


def worker_hosts(
    nodes: Mapping[Slot, str], own_node: str, addresses: Mapping[str, str]
) -> dict[Slot, str]:
    """The address that each worker listens on.

    ``nodes``: node id of each worker; ``own_node``: that of the router and of who serves;
    ``addresses``: node id → IP address. All on the own node: loopback, which nobody else reaches.
    Raises ``Unavailable`` if a node is not there any more.
    """
    if set(nodes.values()) <= {own_node}:
        return dict.fromkeys(nodes, LOOPBACK)
    return {slot: address_of(node, addresses) for slot, node in nodes.items()}


def address_of(node: str, addresses: Mapping[str, str]) -> str:
    """``addresses``: node id → IP address of every living node. Raises ``Unavailable``."""
    if node not in addresses:
        raise node_lost(node)
    return addresses[node]


def node_lost(node: str) -> Unavailable:
    """Of the time between Ray's choice of a node and the start of a worker there."""
    return Unavailable(
        f"node {node or '(unknown)'} died after Ray had found room there; try again",
        reason="NODE_UNAVAILABLE",
    )


def exposure_warning(hosts: Mapping[Slot, str]) -> str:
    """What people should know of workers that listen on a network; "" if none does."""
    exposed = {slot.name: host for slot, host in hosts.items() if not host.startswith("127.")}
    if not exposed:
        return ""
    where = ", ".join(f"{name} on {host}" for name, host in sorted(exposed.items()))
    return (
        f"warning: workers live on several nodes and listen on their addresses ({where}): whoever "
        "reaches these ports can use the workers, for nobody has to authenticate there; close "
        "the network between the nodes to others"
    )
