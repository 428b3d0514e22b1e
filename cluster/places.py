"""Room for workers: which node and cores each one has, and whether there is room for another.

Covers: placing the first workers together and later ones one by one; cores shared with the least
crowded; passing a place on; saying before a change that memory or Ray's resources don't suffice.
Does not cover: Ray itself (``cluster.ray_cluster``), how many workers there shall be
(``cluster.pool_state``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cluster.addresses import LOOPBACK, address_of, exposure_warning, worker_hosts
from cluster.model_folder import ModelFolder
from cluster.placement_fit import Resources
from cluster.plan import (
    Slot,
    assign_by_node,
    resources_of,
    worker_memory,
    worker_settings,
)
from core.affinity import share_cores
from core.config import ClusterSpec
from core.errors import Overloaded, Unavailable
from core.worker_settings import WorkerSettings
from engine.memory import available_memory

# The first workers are waited for longer: a joined cluster may have to start nodes for them.
FIRST_TIMEOUT_S = 60.0
LATER_TIMEOUT_S = 10.0


class Nodes(Protocol):
    """What is needed of ``cluster.ray_cluster.RayCluster``."""

    @property
    def is_local(self) -> bool: ...
    @property
    def own_node(self) -> str: ...
    @property
    def node_addresses(self) -> dict[str, str]: ...
    async def place(
        self, needs: Mapping[Slot, Resources], timeout_s: float, near: str | None = None
    ) -> dict[Slot, str]: ...
    async def node_cores(self, node_id: str) -> list[int]: ...
    def check_room(self, needs: Mapping[Slot, Resources]) -> None: ...
    def pass_on(self, slot: Slot, heir: Slot) -> None: ...
    def give_back(self, slot: Slot) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """``host``: the address that the worker listens on."""

    node: str
    host: str
    cores: tuple[int, ...]


class Places:
    """Where every worker of one cluster is. Runs on one event loop."""

    def __init__(
        self,
        nodes: Nodes,
        spec: ClusterSpec,
        model: ModelFolder,
        num_blocks: int,
        free_memory: Callable[[], int | None] = available_memory,
    ) -> None:
        """``num_blocks``: KV blocks of each worker; ``free_memory`` of this machine in bytes."""
        self._nodes = nodes
        self._spec = spec
        self._model = model
        self._num_blocks = num_blocks
        self._free_memory = free_memory
        self._places: dict[Slot, Place] = {}
        self._on_loopback = True
        self._cores: dict[str, list[int]] = {}

    async def place_first(self, slots: Sequence[Slot]) -> None:
        """All or none. Raises ``Unavailable`` if there is no room for them."""
        nodes = await self._nodes.place(self._needs(slots), FIRST_TIMEOUT_S)
        with self._given_back_on_failure(slots):
            hosts = worker_hosts(nodes, self._nodes.own_node, self._nodes.node_addresses)
            cores = {node: await self._cores_of(node) for node in set(nodes.values())}
            shares = assign_by_node(nodes, cores)
        for slot, share in shares.items():
            self._places[slot] = Place(nodes[slot], hosts[slot], share)
        self._on_loopback = set(hosts.values()) == {LOOPBACK}

    @property
    def exposure_warning(self) -> str:
        """What people should know of workers that listen on a network; "" if none does."""
        return exposure_warning({slot: place.host for slot, place in self._places.items()})

    def check_room(self, slots: Sequence[Slot]) -> None:
        """Raises ``Unavailable`` or ``Overloaded`` if these workers find no room now."""
        if not slots:
            return
        self._nodes.check_room(self._needs(slots))
        free = self._free_memory() if self._nodes.is_local else None
        needed = len(slots) * worker_memory(self._spec, self._model, self._num_blocks)
        if free is not None and needed > free:
            raise Overloaded(
                f"{len(slots)} more workers need about {needed / 2**30:.1f} GiB of memory, and "
                f"only {free / 2**30:.1f} GiB are free: scale another pool down first",
                reason="NOT_ENOUGH_MEMORY",
            )

    async def settings(self, slot: Slot, beside: Slot | None = None) -> WorkerSettings:
        """What to tell ``slot``'s worker. One without a place gets one, with the cores of
        ``beside`` if it is to replace that one. Raises ``Unavailable`` without room."""
        if slot not in self._places:
            self._places[slot] = await self._place(slot, beside)
        place = self._places[slot]
        settings = worker_settings(self._spec, self._model, slot, place.cores, self._num_blocks)
        return replace(settings, host=place.host)

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        """``heir`` takes over what ``slot`` leaves, if it needs the same."""
        own_ray = self._nodes.is_local
        if resources_of(self._spec, slot, own_ray) != resources_of(self._spec, heir, own_ray):
            self.give_back(slot)
        elif slot in self._places:
            self._nodes.pass_on(slot, heir)
            self._places[heir] = self._places.pop(slot)

    def give_back(self, slot: Slot) -> None:
        if self._places.pop(slot, None) is not None:
            self._nodes.give_back(slot)

    async def _place(self, slot: Slot, beside: Slot | None) -> Place:
        near = next((place.node for place in self._places.values()), None)
        nodes = await self._nodes.place(self._needs([slot]), LATER_TIMEOUT_S, near)
        with self._given_back_on_failure([slot]):
            return await self._place_on(nodes[slot], beside)

    async def _place_on(self, node: str, beside: Slot | None) -> Place:
        host = self._host_on(node)
        # Nobody else may be given cores between the look at the taken ones and the choice.
        cores = await self._cores_of(node)
        neighbour = self._places.get(beside) if beside is not None else None
        if neighbour is not None and neighbour.node == node:
            return Place(node, host, neighbour.cores)
        taken = [place.cores for place in self._places.values() if place.node == node]
        return Place(node, host, share_cores(cores, taken))

    @contextlib.contextmanager
    def _given_back_on_failure(self, slots: Iterable[Slot]) -> Iterator[None]:
        """Room that was found is not kept for a worker that gets no place, also if cancelled."""
        try:
            yield
        except BaseException:
            for slot in slots:
                self._nodes.give_back(slot)
            raise

    def _host_on(self, node: str) -> str:
        """Workers that listen on loopback can't be joined by one elsewhere."""
        if not self._on_loopback:
            return address_of(node, self._nodes.node_addresses)
        if node == self._nodes.own_node:
            return LOOPBACK
        raise Unavailable(
            "Ray has room for another worker on another node only, and this cluster's workers "
            "listen on loopback, where nothing from there reaches them: start the cluster with "
            "more replicas, so that it spans nodes from the beginning, or make room on this node",
            reason="SEVERAL_NODES",
        )

    def _needs(self, slots: Iterable[Slot]) -> dict[Slot, Resources]:
        return {slot: resources_of(self._spec, slot, self._nodes.is_local) for slot in slots}

    async def _cores_of(self, node: str) -> list[int]:
        if node not in self._cores:
            self._cores[node] = await self._nodes.node_cores(node)
        return self._cores[node]
