"""Ray as our engine for processes and placement. Ray never carries prompts or tokens.

Covers: a local Ray (loopback only, token, no dashboard) or joining one; its nodes; which worker
has which room. With ``cluster.placement_groups`` and ``cluster.replica`` it makes every Ray call
but the actors' own. Does not cover: the actors of a worker (``cluster.replica``), files and
environment of Ray (``cluster.ray_environment``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.placement_fit import ReplicaNeed, Resources, check_fit, check_free, choose_node
from cluster.placement_groups import Room, living_nodes, release, reserve
from cluster.plan import ReplicaSettings, Slot
from cluster.ray_daemons import needed_daemons_only
from cluster.ray_environment import (
    empty_current_directory,
    new_folder,
    prepare_environment,
    ray_unavailable,
    require_reachable,
)
from cluster.ray_errors import ray_error, summary
from cluster.replica import ActorClasses, ReplicaHandle, create_replica
from core.errors import Unavailable

_OBJECT_STORE_BYTES = 100 * 2**20


def actor_classes() -> ActorClasses:
    from cluster.rank_actor import RankActor
    from cluster.worker_actor import WorkerActor

    return ActorClasses(WorkerActor, RankActor)


class RayCluster:
    """``address`` None: our own local Ray. ``actor_classes`` gives the Ray actors of ranks; it is
    called once Ray runs, because Ray must not be imported before. ``own_address``: IP address of
    the node to take part by, on this host; "": Ray's choice, which may be the head's."""

    def __init__(
        self,
        address: str | None = None,
        actor_classes: Callable[[], ActorClasses] = actor_classes,
        own_address: str = "",
    ) -> None:
        self._address = address
        self._own_address = own_address
        self._actor_classes = actor_classes
        self._rooms: dict[Slot, Room] = {}
        self._folder: Path | None = None
        # Start may still be under way in its thread when a signal wants a shutdown.
        self._lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        return self._address is None

    @property
    def own_node(self) -> str:
        """Id of the node that this process is on."""
        node: str = _ray().get_runtime_context().get_node_id()
        return node

    @property
    def node_addresses(self) -> dict[str, str]:
        """IP address of each node, by its id."""
        return {node: about["NodeManagerAddress"] for node, about in living_nodes().items()}

    def start(self) -> None:
        """Blocks for some seconds. Raises ``Unavailable`` if Ray does not come up."""
        with self._lock:
            self._folder = new_folder()
            if self._address is None:
                prepare_environment(self._folder)
            else:
                require_reachable(self._address)
            ray = _ray()
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            try:
                with empty_current_directory(self._folder), needed_daemons_only():
                    ray.init(**self._init_options(self._folder))
            except Exception as error:
                where = self._address or "locally"
                raise ray_unavailable(
                    f"Ray could not be started or joined ({where}): {error}"
                ) from error
            if self.is_local:
                _require_loopback()

    async def place(
        self, needs: Mapping[Slot, ReplicaNeed], timeout_s: float, near: str | None = None
    ) -> dict[Slot, tuple[str, ...]]:
        """One placement group per replica, so that each can go by itself; all of them or none.
        Returns the node id of each slot's ranks: that of the node ``near`` if there is room.

        Raises ``Unavailable`` if the cluster can never hold them, does not within the timeout, or
        loses a node at that moment.
        """
        self._check_fit(needs)
        target = near or choose_node(_capacities(), list(needs.values()), self.own_node)
        rooms = await reserve(needs, target, timeout_s)
        self._rooms.update(rooms)
        return {slot: room.nodes for slot, room in rooms.items()}

    def check_room(self, needs: Mapping[Slot, ReplicaNeed], leaving: Sequence[Slot] = ()) -> None:
        """Raises ``Unavailable`` if there is no room for these beside all that run now, when those
        that are ``leaving`` have left."""
        self._check_fit(needs, leaving)
        freed = [self._rooms[slot].need for slot in leaving if slot in self._rooms]
        check_free(list(needs.values()), _ray().available_resources(), freed)

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        """``heir`` gets the room of ``slot``, whose worker has ended."""
        self._rooms[heir] = self._rooms.pop(slot)

    def give_back(self, slot: Slot) -> None:
        """Ends what still runs there."""
        # After a shutdown nothing is left to give back.
        if slot in self._rooms:
            release([self._rooms.pop(slot)])

    async def close_node(self, node_id: str, reason: str, limit_s: float) -> None:
        """Ray places nothing there any more, and takes the node for dead after the limit."""
        await asyncio.to_thread(_drain_node, node_id, reason, limit_s)

    async def node_cores(self, node_id: str) -> list[int]:
        """CPU cores that a worker on this node may use. Raises ``Unavailable`` if nobody there
        answers, because the node died for example."""
        ray = _ray()
        if node_id == self.own_node:
            return sorted(os.sched_getaffinity(0))
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        probe = ray.remote(num_cpus=0)(_allowed_cores).options(scheduling_strategy=there)
        try:
            cores: list[int] = await probe.remote()
        except ray_error() as error:
            raise Unavailable(
                f"node {node_id} did not tell its CPU cores: {summary(error)}",
                reason="NODE_UNAVAILABLE",
            ) from None
        return cores

    def create_worker(self, slot: Slot, settings: ReplicaSettings) -> ReplicaHandle:
        """Fresh actors in the slot's room; they do nothing until ``start``."""
        return create_replica(slot, self._rooms[slot], settings, self._actor_classes())

    def shutdown(self, patience_s: float = -1) -> bool:
        """Ends every worker, removes the placement groups, leaves Ray; ends it if it is ours.

        False if ``start`` is still under way after ``patience_s`` seconds (-1: no limit).
        """
        if not self._lock.acquire(timeout=patience_s):
            return False
        try:
            self._leave()
        finally:
            self._lock.release()
        return True

    def abandon(self) -> None:
        """Removes what lies on disk, without a word to Ray."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _leave(self) -> None:
        if self._folder is None:
            return  # Never started; importing Ray now would take its environment from it.
        if _ray().is_initialized():
            release(self._rooms.values())
            self._rooms.clear()
            _ray().shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _check_fit(self, needs: Mapping[Slot, ReplicaNeed], leaving: Sequence[Slot] = ()) -> None:
        pools: dict[str, list[ReplicaNeed]] = {}
        taken = {s: room.need for s, room in self._rooms.items() if s not in leaving}
        for slot, need in (taken | dict(needs)).items():
            pools.setdefault(slot.pool, []).append(need)
        check_fit(list(_capacities().values()), pools)

    def _init_options(self, folder: Path) -> dict[str, Any]:
        quiet = {"log_to_driver": False, "configure_logging": False}
        if not self.is_local:
            by = {"_node_ip_address": self._own_address} if self._own_address else {}
            return {"address": self._address, **by, **quiet}
        return {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder),
            **quiet,
        }


def _capacities() -> dict[str, Resources]:
    """All resources of each node, by its id."""
    return {node: about["Resources"] for node, about in living_nodes().items()}


def _drain_node(node_id: str, reason: str, limit_s: float) -> None:
    from ray.core.generated import autoscaler_pb2

    client = _ray()._raylet.GcsClient(address=_ray().get_runtime_context().gcs_address)
    deadline_ms = int((time.time() + limit_s) * 1000)
    preempted = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, refusal = client.drain_node(node_id, preempted, reason, deadline_ms)
    if not accepted:
        raise Unavailable(f"Ray does not drain node {node_id}: {refusal}", reason="RAY_UNAVAILABLE")


def _require_loopback() -> None:
    """Our own Ray must not be reachable from outside."""
    address = _ray().util.get_node_ip_address()
    if address != "127.0.0.1":
        raise ray_unavailable(
            f"Ray listens on {address} and not on loopback only: it was imported before "
            "Crossdock could set its environment"
        )


def _allowed_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _ray() -> Any:
    """Imported late: it takes a while, and its environment must be set before."""
    import ray

    return ray
