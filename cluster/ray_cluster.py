"""Ray as our engine for processes and placement: every Ray call but the actor's own is here.

Covers: a local Ray (loopback only, token, no dashboard) or joining one; placement groups; making,
watching and ending worker actors. Does not cover: when to start which (``cluster.pool_state``),
what an actor does (``cluster.worker_actor``). Ray never carries prompts or tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.addresses import node_lost
from cluster.placement_fit import Resources, check_fit, check_free, choose_node, show
from cluster.plan import Slot, thread_environment
from cluster.pool_messages import Started
from cluster.shadowing import our_root
from core.errors import CrossdockError, InternalError, Unavailable
from core.worker_settings import WorkerSettings

_WAIT_SLICE_S = 1.0
_JOIN_TIMEOUT_S = 5.0
_FOLDER_PREFIX = "crossdock-"
_OBJECT_STORE_BYTES = 100 * 2**20
_LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AUTOSCALER_METRIC_PORT": "0",
    # Without this Ray replaces 127.0.0.1 by the address of the network card and listens on all
    # interfaces. It names two systems but works on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


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
        self._groups: dict[Slot, Any] = {}
        self._resources: dict[Slot, Resources] = {}
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
        nodes = _ray().nodes()
        return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}

    def start(self) -> None:
        """Blocks for some seconds. Raises ``Unavailable`` if Ray does not come up."""
        with self._lock:
            _sweep_folders(Path(tempfile.gettempdir()))
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
            if self._address is None:
                self._prepare_environment(self._folder)
            else:
                _require_reachable(self._address)
            ray = _ray()
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            try:
                with _empty_current_directory(self._folder):
                    ray.init(**self._init_options(self._folder))
            except Exception as error:
                where = self._address or "locally"
                raise _unavailable(
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
        target = near or choose_node(self._nodes(), list(needs.values()), self.own_node)
        groups: dict[Slot, Any] = {}
        try:
            for slot, need in needs.items():
                groups[slot] = _new_group(need, target)
            await _wait_for_room(groups, needs, timeout_s)
            nodes = {slot: self._node_of(group) for slot, group in groups.items()}
        except BaseException:
            _remove_groups(groups.values())
            raise
        self._groups.update(groups)
        self._resources.update(needs)
        return nodes

    def check_room(self, needs: Mapping[Slot, Resources]) -> None:
        """Raises ``Unavailable`` if there is no room for these beside all that run now."""
        self._check_fit(needs)
        check_free(list(needs.values()), _ray().available_resources())

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        """``heir`` gets the room of ``slot``, whose worker has ended."""
        self._groups[heir] = self._groups.pop(slot)
        self._resources[heir] = self._resources.pop(slot)

    def give_back(self, slot: Slot) -> None:
        """Ends what still runs there."""
        # After a shutdown nothing is left to give back.
        if slot in self._groups:
            self._resources.pop(slot)
            _remove_groups([self._groups.pop(slot)])

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

        resources = dict(self._resources[slot])
        actor = (
            self._actor_class()
            .options(
                num_cpus=resources.pop("CPU", 0),
                num_gpus=resources.pop("GPU", 0),
                resources=resources,
                # Restarts are ours: a replacement needs a new epoch and fresh settings.
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._groups[slot], placement_group_bundle_index=0
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
            _remove_groups(self._groups.values())
            self._groups.clear()
            _ray().shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _check_fit(self, needs: Mapping[Slot, Resources]) -> None:
        pools: dict[str, list[Resources]] = {}
        for slot, need in (self._resources | dict(needs)).items():
            pools.setdefault(slot.pool, []).append(need)
        check_fit(list(self._nodes().values()), pools)

    def _nodes(self) -> dict[str, Resources]:
        return {node["NodeID"]: node["Resources"] for node in _ray().nodes() if node["Alive"]}

    def _node_of(self, group: Any) -> str:
        from ray.util.placement_group import placement_group_table

        node: str = placement_group_table(group).get("bundles_to_node_id", {}).get(0, "")
        if node not in self._nodes():
            raise node_lost(node)
        return node

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

    @staticmethod
    def _prepare_environment(folder: Path) -> None:
        """Must come before Ray's first import: it reads some of these there."""
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(_auth_token())
        os.environ.update(_LOCAL_ENVIRONMENT)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ.pop("RAY_AUTH_TOKEN", None)
        # A variable of the user's shell must not make us join somebody's cluster.
        os.environ.pop("RAY_ADDRESS", None)


def _new_group(need: Resources, node_id: str) -> Any:
    """Room for one replica, on this node if there is some."""
    from ray.util.placement_group import placement_group

    return placement_group([dict(need)], strategy="STRICT_PACK", _soft_target_node_id=node_id)


async def _wait_for_room(
    groups: Mapping[Slot, Any], needs: Mapping[Slot, Resources], timeout_s: float
) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    for slot, group in groups.items():
        # In slices: a thread can't be cancelled.
        while not await asyncio.to_thread(group.wait, min(timeout_s, _WAIT_SLICE_S)):
            if asyncio.get_running_loop().time() < deadline:
                continue
            free = {k: v for k, v in _ray().available_resources().items() if k in needs[slot]}
            raise Unavailable(
                f"no room for {slot.name} after {timeout_s:g} s: {len(needs)} × "
                f"({show(needs[slot])}) are needed and only {show(free)} is free now",
                reason="NOT_ENOUGH_RESOURCES",
            )


def _remove_groups(groups: Iterable[Any]) -> None:
    from ray.util.placement_group import remove_placement_group

    for group in groups:
        with contextlib.suppress(_ray_error()):
            remove_placement_group(group)


def _sweep_folders(parent: Path) -> None:
    """Removes folders of runs that were killed: their names hold the id of a dead process."""
    for folder in parent.glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _empty_current_directory(folder: Path) -> Iterator[None]:
    """Ray puts the driver's current directory on its workers' path: files there hide modules."""
    empty = folder / "empty"
    empty.mkdir()
    before = os.getcwd()
    os.chdir(empty)
    try:
        yield
    finally:
        os.chdir(before)


@functools.cache
def _auth_token() -> str:
    """One per process: Ray reads it once and keeps it, also for the next cluster."""
    return secrets.token_hex(32)


def _require_reachable(address: str) -> None:
    """Ray itself would try for minutes. Names such as "auto" are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_JOIN_TIMEOUT_S).close()
    except OSError as error:
        raise _unavailable(f"no Ray cluster answers at {address}: {error.strerror}") from None


def _require_loopback() -> None:
    """Our own Ray must not be reachable from outside."""
    address = _ray().util.get_node_ip_address()
    if address != "127.0.0.1":
        raise _unavailable(
            f"Ray listens on {address} and not on loopback only: it was imported before "
            "Crossdock could set its environment"
        )


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, reason="RAY_UNAVAILABLE")


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
