"""Room for workers in Ray: one placement group per replica, so that each can go by itself.

Covers: finding room for all or none, telling the node, giving room back. Does not cover: whether
there can ever be room (``cluster.placement_fit``), every other Ray call (``cluster.ray_cluster``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.addresses import node_lost
from cluster.placement_fit import Resources, show
from cluster.plan import Slot
from core.errors import Unavailable

_WAIT_SLICE_S = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """``group``: Ray's placement group, of one bundle; ``node``: id of the node that it is on."""

    group: Any
    node: str
    resources: Resources


async def reserve(
    needs: Mapping[Slot, Resources], node_id: str, timeout_s: float
) -> dict[Slot, Room]:
    """Room for all of these or none, on this node if there is some.

    Raises ``Unavailable`` if there is none within the timeout, or a node dies at that moment.
    """
    groups: dict[Slot, Any] = {}
    try:
        for slot, need in needs.items():
            groups[slot] = _new_group(need, node_id)
        await _wait(groups, needs, timeout_s)
        return {slot: Room(group, _node_of(group), needs[slot]) for slot, group in groups.items()}
    except BaseException:
        _remove(groups.values())
        raise


def release(rooms: Iterable[Room]) -> None:
    """Ends what still runs there."""
    _remove(room.group for room in rooms)


def living_nodes() -> dict[str, dict[str, Any]]:
    """What Ray knows of each node, by its id."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _new_group(need: Resources, node_id: str) -> Any:
    from ray.util.placement_group import placement_group

    return placement_group([dict(need)], strategy="STRICT_PACK", _soft_target_node_id=node_id)


async def _wait(
    groups: Mapping[Slot, Any], needs: Mapping[Slot, Resources], timeout_s: float
) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    for slot, group in groups.items():
        # In slices: a thread can't be cancelled.
        while not await asyncio.to_thread(group.wait, min(timeout_s, _WAIT_SLICE_S)):
            if asyncio.get_running_loop().time() >= deadline:
                raise _no_room(slot, needs, timeout_s)


def _no_room(slot: Slot, needs: Mapping[Slot, Resources], timeout_s: float) -> Unavailable:
    import ray

    free = {k: v for k, v in ray.available_resources().items() if k in needs[slot]}
    return Unavailable(
        f"no room for {slot.name} after {timeout_s:g} s: {len(needs)} × "
        f"({show(needs[slot])}) are needed and only {show(free)} is free now",
        reason="NOT_ENOUGH_RESOURCES",
    )


def _node_of(group: Any) -> str:
    from ray.util.placement_group import placement_group_table

    node: str = placement_group_table(group).get("bundles_to_node_id", {}).get(0, "")
    if node not in living_nodes():
        raise node_lost(node)
    return node


def _remove(groups: Iterable[Any]) -> None:
    from ray.exceptions import RayError
    from ray.util.placement_group import remove_placement_group

    for group in groups:
        with contextlib.suppress(RayError):
            remove_placement_group(group)
