"""Room for workers: which node and cores each rank has, and whether there is room for another.

Covers: placing the first workers together and later ones one by one; cores shared with the least
crowded; passing a place on; saying before a change that memory or Ray's resources don't suffice.
Does not cover: Ray itself (``cluster.ray_cluster``), how many workers there shall be
(``cluster.pool_state``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from cluster.addresses import LOOPBACK, address_of, exposure_warning, worker_hosts
from cluster.memory_plan import PoolBlocks, replica_memory
from cluster.model_folder import ModelFolder
from cluster.placement_fit import ReplicaNeed
from cluster.plan import (
    RankPlace,
    ReplicaSettings,
    Slot,
    assign_by_node,
    check_threads,
    replica_need,
    replica_settings,
)
from core.affinity import share_cores
from core.config import ClusterSpec
from core.errors import Overloaded, Unavailable
from engine.memory import available_memory

# The first workers are waited for longer: a joined cluster may have to start nodes for them.
FIRST_TIMEOUT_S = 60.0
LATER_TIMEOUT_S = 10.0
# Between two looks for the room of the first workers.
ROOM_PAUSE_S = 5.0


class Nodes(Protocol):
    """What is needed of ``cluster.ray_cluster.RayCluster``."""

    @property
    def is_local(self) -> bool: ...
    @property
    def own_node(self) -> str: ...
    @property
    def node_addresses(self) -> dict[str, str]: ...
    async def place(
        self, needs: Mapping[Slot, ReplicaNeed], timeout_s: float, near: str | None = None
    ) -> dict[Slot, tuple[str, ...]]: ...
    async def node_cores(self, node_id: str) -> list[int]: ...
    def check_room(
        self, needs: Mapping[Slot, ReplicaNeed], leaving: Sequence[Slot] = ()
    ) -> None: ...
    def pass_on(self, slot: Slot, heir: Slot) -> None: ...
    def give_back(self, slot: Slot) -> None: ...
    async def close_node(self, node_id: str, reason: str, limit_s: float) -> None: ...


class Places:
    """Where every rank of every worker of one cluster is. Runs on one event loop."""

    def __init__(
        self,
        nodes: Nodes,
        spec: ClusterSpec,
        model: ModelFolder,
        blocks: PoolBlocks,
        free_memory: Callable[[], int | None] = available_memory,
    ) -> None:
        """``free_memory``: of this machine, in bytes."""
        self._nodes = nodes
        self._spec = spec
        self._model = model
        self._blocks = blocks
        self._free_memory = free_memory
        self._places: dict[Slot, tuple[RankPlace, ...]] = {}
        self._on_loopback = True
        self._cores: dict[str, list[int]] = {}

    async def place_first(
        self,
        slots: Sequence[Slot],
        patience_s: float = 0.0,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """All or none. Tries again for ``patience_s`` seconds: nodes may still be on their way.
        ``note`` is told what is missing, whenever that is something else than before.

        Raises ``Unavailable`` if there is no room for them, ``InvalidField`` if there are fewer
        cores on a node than a rank is to have threads."""
        now = asyncio.get_running_loop().time
        deadline = now() + patience_s
        missing = ""
        while True:
            try:
                return await self._place_first(slots)
            except Unavailable as error:
                if now() >= deadline:
                    raise
                if error.message != missing:
                    note(f"waits for room: {error.message}")
                missing = error.message
            await asyncio.sleep(ROOM_PAUSE_S)

    async def _place_first(self, slots: Sequence[Slot]) -> None:
        needs = {slot: self._need(slot) for slot in slots}
        nodes = await self._nodes.place(needs, FIRST_TIMEOUT_S)
        with self._given_back_on_failure(slots):
            hosts = worker_hosts(nodes, self._nodes.own_node, self._nodes.node_addresses)
            known = {node for of_ranks in nodes.values() for node in of_ranks}
            cores = {node: await self._cores_of(node) for node in known}
            check_threads(self._spec, min(map(len, cores.values())))
            shares = assign_by_node(nodes, cores)
        for slot in slots:
            ranks = zip(nodes[slot], hosts[slot], shares[slot], strict=True)
            self._places[slot] = tuple(RankPlace(*rank) for rank in ranks)
        self._on_loopback = {h for of_ranks in hosts.values() for h in of_ranks} == {LOOPBACK}

    @property
    def exposure_warning(self) -> str:
        """What people should know of workers that listen on a network; "" if none does."""
        hosts = {slot: [rank.host for rank in ranks] for slot, ranks in self._places.items()}
        return exposure_warning(hosts, self._spec.tls_files is not None)

    def check_room(self, slots: Sequence[Slot], heirs: Mapping[Slot, Slot] | None = None) -> None:
        """Raises ``Unavailable`` or ``Overloaded`` if these workers find no room now.

        ``heirs``: worker that leaves → worker that is started then, in its place if that suits it.
        """
        moving = {s: heir for s, heir in (heirs or {}).items() if not self._suits(s, heir)}
        new, leaving = [*slots, *moving.values()], list(moving)
        if not new:
            return
        self._nodes.check_room({slot: self._need(slot) for slot in new}, leaving)
        free = self._free_memory() if self._nodes.is_local else None
        needed = sum(map(self._memory, new)) - sum(map(self._memory, leaving))
        if free is not None and needed > free:
            raise Overloaded(
                f"{len(new)} more workers need about {needed / 2**30:.1f} GiB of memory, and "
                f"only {free / 2**30:.1f} GiB are free: scale another pool down first",
                reason="NOT_ENOUGH_MEMORY",
            )

    async def settings(self, slot: Slot, beside: Slot | None = None) -> ReplicaSettings:
        """What to tell ``slot``'s worker. One without a place gets one, with the cores of
        ``beside`` if it is to replace that one. Raises ``Unavailable`` without room."""
        if not self.on_living_nodes(slot):
            # Ray would move what it lost to a node where this address is not.
            self.give_back(slot)
        if slot not in self._places:
            self._places[slot] = await self._place(slot, beside)
        num_blocks = self._blocks.of(slot.pool)
        return replica_settings(self._spec, self._model, slot, self._places[slot], num_blocks)

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        """``heir`` takes over what ``slot`` leaves, if it needs the same."""
        if not self._suits(slot, heir):
            self.give_back(slot)
        elif slot in self._places:
            self._nodes.pass_on(slot, heir)
            self._places[heir] = self._places.pop(slot)

    def on_address(self, address: str) -> tuple[Slot, ...]:
        """Workers with a rank on the node at this IP address."""
        here = self._nodes_at(address)
        placed = self._places.items()
        return tuple(slot for slot, ranks in placed if any(rank.node in here for rank in ranks))

    async def close_node(self, address: str, reason: str, limit_s: float) -> None:
        """Nothing is placed on the node at this IP address any more; it goes within the limit."""
        for node in self._nodes_at(address):
            await self._nodes.close_node(node, reason, limit_s)

    def _nodes_at(self, address: str) -> set[str]:
        known = self._nodes.node_addresses.items()
        return {node for node, own in known if own == address}

    def give_back(self, slot: Slot) -> None:
        if self._places.pop(slot, None) is not None:
            self._nodes.give_back(slot)

    async def _place(self, slot: Slot, beside: Slot | None) -> tuple[RankPlace, ...]:
        near = next((ranks[0].node for ranks in self._places.values()), None)
        nodes = await self._nodes.place({slot: self._need(slot)}, LATER_TIMEOUT_S, near)
        with self._given_back_on_failure([slot]):
            return await self._place_on(nodes[slot], beside)

    async def _place_on(self, nodes: tuple[str, ...], beside: Slot | None) -> tuple[RankPlace, ...]:
        hosts = [self._host_on(node) for node in nodes]
        for node in set(nodes):
            await self._cores_of(node)
        # Nobody else may be given cores between the look at the taken ones and the choice.
        cores = self._choose_cores(nodes, self._places.get(beside) if beside else None)
        return tuple(RankPlace(*rank) for rank in zip(nodes, hosts, cores, strict=True))

    def _choose_cores(
        self, nodes: tuple[str, ...], neighbour: tuple[RankPlace, ...] | None
    ) -> list[tuple[int, ...]]:
        """Cores of one more worker's ranks: those of the neighbour that is on the same nodes."""
        if neighbour is not None and tuple(rank.node for rank in neighbour) == nodes:
            return [rank.cores for rank in neighbour]
        shares = {node: iter(self._share(node, nodes.count(node))) for node in set(nodes)}
        return [next(shares[node]) for node in nodes]

    def _share(self, node: str, workers: int) -> list[tuple[int, ...]]:
        everybody = (rank for ranks in self._places.values() for rank in ranks)
        taken = [rank.cores for rank in everybody if rank.node == node]
        return share_cores(self._cores[node], taken, workers)

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

    def _need(self, slot: Slot) -> ReplicaNeed:
        return replica_need(self._spec, slot, self._nodes.is_local)

    def _suits(self, slot: Slot, heir: Slot) -> bool:
        """A place has room for so many ranks of such a size, in such an order."""
        return self._need(slot) == self._need(heir)

    def on_living_nodes(self, slot: Slot) -> bool:
        """Whether Ray has lost none of the nodes of its ranks. Asks Ray, which may be away."""
        alive = self._nodes.node_addresses
        return all(rank.node in alive for rank in self._places.get(slot, ()))

    def _memory(self, slot: Slot) -> int:
        blocks = self._blocks.of(slot.pool)
        return replica_memory(self._spec, self._model, slot.pool, blocks)

    async def _cores_of(self, node: str) -> list[int]:
        if node not in self._cores:
            self._cores[node] = await self._nodes.node_cores(node)
        return self._cores[node]
