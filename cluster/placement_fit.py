"""Says in plain words that a Ray cluster can never hold what is wanted, instead of waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.errors import Unavailable

Resources = Mapping[str, float]

# Ray counts in ten-thousandths.
_EPSILON = 1e-4


def check_fit(nodes: Sequence[Resources], wanted: Mapping[str, Sequence[Resources]]) -> None:
    """``nodes``: total resources of each; ``wanted``: per pool the resources of each replica.

    Raises ``Unavailable`` if a replica is larger than every node, or all are more than all nodes.
    """
    for pool, replicas in wanted.items():
        for need in replicas:
            if not any(_fits(need, node) for node in nodes):
                raise _unavailable(
                    f"a {pool} replica needs {show(need)}, and no node of this Ray cluster has "
                    f"that much (nodes: {'; '.join(show(_relevant(n, need)) for n in nodes)})"
                )
    _check_totals(nodes, [need for replicas in wanted.values() for need in replicas])


def check_free(needs: Sequence[Resources], free: Resources) -> None:
    """``free``: resources of the whole cluster that nobody has at present. Raises
    ``Unavailable``."""
    for name in sorted({name for need in needs for name in need}):
        total = sum(need.get(name, 0.0) for need in needs)
        if total > free.get(name, 0.0) + _EPSILON:
            raise _unavailable(
                f"{len(needs)} more replicas need {name} {total:g}, and only "
                f"{free.get(name, 0.0):g} of this Ray cluster is free: add nodes, or scale "
                "another pool down first"
            )


def choose_node(nodes: Mapping[str, Resources], needs: Sequence[Resources], own: str) -> str:
    """A node (by id) that is large enough for all, rather our ``own`` one."""
    total = {name: sum(n.get(name, 0.0) for n in needs) for need in needs for name in need}
    large = [node for node, has in nodes.items() if _fits(total, has)]
    return own if own in large or not large else large[0]


def show(resources: Resources) -> str:
    """E.g. "CPU 0.5, GPU 1"."""
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items()) or "nothing"


def _check_totals(nodes: Sequence[Resources], needs: Sequence[Resources]) -> None:
    for name in sorted({name for need in needs for name in need}):
        total = sum(need.get(name, 0.0) for need in needs)
        there = sum(node.get(name, 0.0) for node in nodes)
        if total > there + _EPSILON:
            raise _unavailable(
                f"{len(needs)} replicas need {name} {total:g} together, and this Ray cluster has "
                f"{there:g}; set pools.prefill.resources and pools.decode.resources lower, or "
                "start fewer replicas"
            )


def _fits(need: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) + _EPSILON >= amount for name, amount in need.items())


def _relevant(node: Resources, need: Resources) -> Resources:
    return {name: node.get(name, 0.0) for name in need}


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, reason="NOT_ENOUGH_RESOURCES")
