"""Room for workers in Ray: one placement group per replica, so that each can go by itself.

Covers: finding room for all or none, telling the nodes, giving room back. Does not cover: whether
there can ever be room and what goes into a bundle (``cluster.placement_fit``), every other Ray call
(``cluster.ray_cluster``, ``cluster.replica``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.addresses import node_lost
from cluster.placement_fit import (
    Bundles,
    ReplicaNeed,
    fits_on_one_node,
    show,
    split_into_bundles,
)
from cluster.plan import Slot
from core.errors import Unavailable

_MIN_WAIT_S = 0.05
_WAIT_SLICE_S = 1.0
# A replica that one node could hold waits this long for one that has the room free now.
_TOGETHER_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Room:
    """``group``: Ray's placement group. Of each rank: ``bundles`` its bundle's index in there,
    ``nodes`` the id of the node that it is on."""

    group: Any
    need: ReplicaNeed
    bundles: tuple[int, ...]
    nodes: tuple[str, ...]


async def reserve(
    needs: Mapping[Slot, ReplicaNeed], node_id: str, timeout_s: float
) -> dict[Slot, Room]:
    """Room for all of these or none, on this node if there is some. A replica is on one node if
    that works, else its stages are packed on as few as possible.

    Raises ``Unavailable`` if there is none within the timeout, or a node dies at that moment.
    """
    nodes = [about["Resources"] for about in living_nodes().values()]
    bundles = {slot: split_into_bundles(need, nodes) for slot, need in needs.items()}
    together = {s for s, need in needs.items() if fits_on_one_node(need, nodes)}
    groups: dict[Slot, Any] = {}
    try:
        for slot in needs:
            groups[slot] = _new_group(bundles[slot], node_id if slot in together else None)
        start = asyncio.get_running_loop().time()
        for slot in needs:
            patience_s = min(timeout_s, _TOGETHER_PATIENCE_S)
            divisible = slot in together and len(bundles[slot].needs) > 1
            if divisible and not await _ready(groups[slot], start + patience_s):
                _remove([groups[slot]])
                groups[slot] = _new_group(bundles[slot], None)
            if not await _ready(groups[slot], start + timeout_s):
                raise _no_room(slot, needs, timeout_s)
        return {slot: _room(groups[slot], needs[slot], bundles[slot]) for slot in needs}
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


def _new_group(bundles: Bundles, together_on: str | None) -> Any:
    """``together_on``: all bundles on one node, rather on this one; None: on as few as possible."""
    from ray.util.placement_group import placement_group

    needs = [dict(need) for need in bundles.needs]
    if together_on is None:
        return placement_group(needs, strategy="PACK")
    return placement_group(needs, strategy="STRICT_PACK", _soft_target_node_id=together_on)


async def _ready(group: Any, deadline: float) -> bool:
    """Waits for the group's room until the deadline, on the clock of the event loop."""
    now = asyncio.get_running_loop().time
    while True:
        # In slices: a thread can't be cancelled.
        slice_s = min(max(deadline - now(), _MIN_WAIT_S), _WAIT_SLICE_S)
        if await asyncio.to_thread(group.wait, slice_s):
            return True
        if now() >= deadline:
            return False


def _no_room(slot: Slot, needs: Mapping[Slot, ReplicaNeed], timeout_s: float) -> Unavailable:
    import ray

    total = needs[slot].total
    free = {k: v for k, v in ray.available_resources().items() if k in total}
    others = f" beside {len(needs) - 1} others" if len(needs) > 1 else ""
    return Unavailable(
        f"no room for {slot.name}{others} after {timeout_s:g} s: it needs {show(total)}, and only "
        f"{show(free)} is free now",
        reason="NOT_ENOUGH_RESOURCES",
    )


def _room(group: Any, need: ReplicaNeed, bundles: Bundles) -> Room:
    from ray.util.placement_group import placement_group_table

    node_of_bundle = placement_group_table(group).get("bundles_to_node_id", {})
    nodes = tuple(node_of_bundle.get(bundle, "") for bundle in bundles.of_rank)
    alive = living_nodes()
    for node in nodes:
        if node not in alive:
            raise node_lost(node)
    return Room(group, need, bundles.of_rank, nodes)


def _remove(groups: Iterable[Any]) -> None:
    from ray.exceptions import RayError
    from ray.util.placement_group import remove_placement_group

    for group in groups:
        with contextlib.suppress(RayError):
            remove_placement_group(group)
