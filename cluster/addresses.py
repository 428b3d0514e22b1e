"""Where workers listen: on loopback if they can, on their nodes' addresses if they must. Pure.

Does not cover: asking Ray (``cluster.ray_cluster``), the doors for clients
(``cluster.serving_cluster``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.plan import Slot
from core.errors import Unavailable

LOOPBACK = "127.0.0.1"


def worker_hosts(
    nodes: Mapping[Slot, Sequence[str]], own_node: str, addresses: Mapping[str, str]
) -> dict[Slot, list[str]]:
    """The address that each rank of each worker listens on.

    ``nodes``: node id of each rank; ``own_node``: that of the router and of who serves;
    ``addresses``: node id → IP address. All on the own node: loopback, which nobody else reaches.
    Raises ``Unavailable`` if a node is not there any more.
    """
    if {node for of_ranks in nodes.values() for node in of_ranks} <= {own_node}:
        return {slot: [LOOPBACK] * len(of_ranks) for slot, of_ranks in nodes.items()}
    return {slot: [address_of(n, addresses) for n in of_ranks] for slot, of_ranks in nodes.items()}


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


def exposure_warning(hosts: Mapping[Slot, Sequence[str]], encrypted: bool) -> str:
    """What people should know of workers that listen on a network; "" if none does. ``hosts``: the
    address of each rank; ``encrypted``: all that we can encrypt is."""
    exposed = {
        (slot.name, host)
        for slot, of_ranks in hosts.items()
        for host in of_ranks
        if not host.startswith("127.") and (len(of_ranks) > 1 or not encrypted)
    }
    if not exposed:
        return ""
    where = ", ".join(f"{name} on {host}" for name, host in sorted(exposed))
    if encrypted:
        return (
            "warning: what the ranks of a worker compute together goes over torch's connections "
            f"(gloo, NCCL), which are neither encrypted nor authenticated ({where}): close the "
            "network between the nodes to others"
        )
    return (
        f"warning: workers live on several nodes and listen on their addresses ({where}): whoever "
        "reaches these ports can use the workers, for nobody has to authenticate there; close "
        "the network between the nodes to others, or set tls"
    )
