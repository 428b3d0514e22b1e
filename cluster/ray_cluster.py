"""Ray as our engine for processes and placement. Ray never carries prompts or tokens.

Covers: a local Ray (loopback only, token, no dashboard) or joining one; which worker has which
room; making, watching and ending worker actors. With ``cluster.placement_groups`` it makes every
Ray call but the actor's own. Does not cover: when to start which (``cluster.pool_state``), what an
actor does (``cluster.worker_actor``), files and environment of Ray (``cluster.ray_environment``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.placement_fit import Resources, check_fit, check_free, choose_node
from cluster.placement_groups import Room, living_nodes, release, reserve
from cluster.plan import Slot, thread_environment
from cluster.pool_messages import Started
from cluster.ray_environment import (
    empty_current_directory,
    new_folder,
    prepare_environment,
    ray_unavailable,
    require_reachable,
)
from cluster.shadowing import our_root
from core.errors import CrossdockError, InternalError, Unavailable
from core.worker_settings import WorkerSettings

_OBJECT_STORE_BYTES = 100 * 2**20


class WorkerHandle:
    """One living worker actor."""

    def __init__(self, slot: Slot, actor: Any) -> None:
        self._slot = slot
        self._actor = actor

    async def start(self) -> Started:
        """Load and serve. Raises ``CrossdockError`` if the worker can't."""
        try:
            answer = await self._actor.start.remote()
        except _ray_error() as error:
            raise _worker_error(self._slot, error) from None
        return Started(self._slot, answer["endpoint"], answer["epoch"], answer["pid"])

    async def wait_closed(self) -> str:
        """Returns when the worker is dead, and how it died."""
        try:
            await self._actor.wait_closed.remote()
        except _ray_error() as error:
            return _summary(error)
        return "it ended by itself"

    async def stop(self, drain_s: float) -> None:
        """Let it finish for at most ``drain_s`` seconds. A worker that is dead already is fine."""
        with contextlib.suppress(_ray_error()):
            await self._actor.stop.remote(drain_s)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(_ray_error()):
            _ray().kill(self._actor)


def worker_actor_class() -> Any:
    from cluster.worker_actor import WorkerActor

    return WorkerActor


class RayCluster:
    """``address`` None: our own local Ray. ``actor_class`` gives the Ray actor of a worker; it is
    called once Ray runs, because Ray must not be imported before."""

    def __init__(
        self, address: str | None = None, actor_class: Callable[[], Any] = worker_actor_class
    ) -> None:
        self._address = address
        self._actor_class = actor_class
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
                with empty_current_directory(self._folder):
                    ray.init(**self._init_options(self._folder))
            except Exception as error:
                where = self._address or "locally"
                raise ray_unavailable(
                    f"Ray could not be started or joined ({where}): {error}"
                ) from error
            if self.is_local:
                _require_loopback()

    async def place(
        self, needs: Mapping[Slot, Resources], timeout_s: float, near: str | None = None
    ) -> dict[Slot, str]:
        """One placement group per replica, so that each can go by itself; all of them or none.
        Returns each slot's node id: that of the node ``near`` if there is room.

        Raises ``Unavailable`` if the cluster can never hold them, does not within the timeout, or
        loses a node at that moment.
        """
        self._check_fit(needs)
        target = near or choose_node(_capacities(), list(needs.values()), self.own_node)
        rooms = await reserve(needs, target, timeout_s)
        self._rooms.update(rooms)
        return {slot: room.node for slot, room in rooms.items()}

    def check_room(self, needs: Mapping[Slot, Resources]) -> None:
        """Raises ``Unavailable`` if there is no room for these beside all that run now."""
        self._check_fit(needs)
        check_free(list(needs.values()), _ray().available_resources())

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        """``heir`` gets the room of ``slot``, whose worker has ended."""
        self._rooms[heir] = self._rooms.pop(slot)

    def give_back(self, slot: Slot) -> None:
        """Ends what still runs there."""
        # After a shutdown nothing is left to give back.
        if slot in self._rooms:
            release([self._rooms.pop(slot)])

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
        except _ray_error() as error:
            raise Unavailable(
                f"node {node_id} did not tell its CPU cores: {_summary(error)}",
                reason="NODE_UNAVAILABLE",
            ) from None
        return cores

    def create_worker(self, slot: Slot, settings: WorkerSettings) -> WorkerHandle:
        """A fresh actor in the slot's bundle; it does nothing until ``start``."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        room = self._rooms[slot]
        resources = dict(room.resources)
        actor = (
            self._actor_class()
            .options(
                num_cpus=resources.pop("CPU", 0),
                num_gpus=resources.pop("GPU", 0),
                resources=resources,
                # Restarts are ours: a replacement needs a new epoch and fresh settings.
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    room.group, placement_group_bundle_index=0
                ),
                runtime_env={"env_vars": thread_environment(settings.threads)},
            )
            .remote(settings, str(our_root()))
        )
        return WorkerHandle(slot, actor)

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

    def _check_fit(self, needs: Mapping[Slot, Resources]) -> None:
        pools: dict[str, list[Resources]] = {}
        taken = {slot: room.resources for slot, room in self._rooms.items()}
        for slot, need in (taken | dict(needs)).items():
            pools.setdefault(slot.pool, []).append(need)
        check_fit(list(_capacities().values()), pools)

    def _init_options(self, folder: Path) -> dict[str, Any]:
        quiet = {"log_to_driver": False, "configure_logging": False}
        if not self.is_local:
            return {"address": self._address, **quiet}
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


def _ray_error() -> type[Exception]:
    error: type[Exception] = _ray().exceptions.RayError
    return error


def _worker_error(slot: Slot, error: Exception) -> CrossdockError:
    """What the worker said, as plainly as Ray lets us know it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, CrossdockError):
        return cause
    return InternalError(_summary(error), reason="WORKER_FAILED", metadata={"worker": slot.name})


def _summary(error: Exception) -> str:
    """The last line of Ray's report, or of the traceback in it: the rest is about Ray itself."""
    exceptions = _ray().exceptions
    if isinstance(error, exceptions.ActorDiedError):
        for part in str(error).split("Worker exit detail: ")[1:]:
            return f"its process died ({part.split('. Some common causes')[0].strip()})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
