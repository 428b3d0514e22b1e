"""Brings a whole cluster up in order, keeps it, and takes it down again.

Order: ports → model → Ray → registry and admin → placement → router and workers → ready.
Down: router (drains) → workers → registry and admin → Ray.

With routers elsewhere (`crossdock controller`) it is the same without a router of its own: they
follow the registry, and the numbers of replicas follow the config file.
Does not cover: signals and what the process says (``cluster.launch``).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.addresses import LOOPBACK
from cluster.admin import ClusterAdmin, ClusterView
from cluster.admin_access import admin_warning
from cluster.controller import Controller
from cluster.controller_doors import ControllerDoors
from cluster.gpu import require_gpu
from cluster.memory_plan import PoolBlocks, plan_blocks, plan_max_model_len
from cluster.metrics import ControllerMetrics
from cluster.model_folder import ModelFolder
from cluster.places import Places
from cluster.plan import POOLS, Slot, check_shapes, check_threads, list_slots
from cluster.pool_state import ATTACH_PATIENCE_S
from cluster.pool_utilization import PoolUtilization
from cluster.ports import check_ports
from cluster.progress import Progress
from cluster.ray_cluster import RayCluster
from cluster.ray_node import RayNode
from cluster.registry import Registry
from cluster.router_costs import router_costs
from cluster.router_process import RouterProcess
from cluster.router_settings import Doors, router_settings
from cluster.separate_router import locate_model, plan_blocks_elsewhere
from cluster.wanted import Wanted
from cluster.wanted_replicas import WantedReplicas
from cluster.worker_stats import ask_worker
from core.config import ClusterSpec
from core.errors import Unavailable
from core.shards import ONE_RANK
from core.tls_files import server_files
from crossdock.v1 import worker_pb2
from engine.memory import available_memory
from router.routing.cost_model import ROUGH_COSTS, ClusterCosts

KILL_PATIENCE_S = 5.0
LEAVE_RAY_S = 10.0
# Ending workers and leaving Ray together. A call to Ray whose daemons are gone already may hold up
# the whole event loop for a minute.
END_LIMIT_S = 25.0


@dataclass(frozen=True, slots=True)
class RoutersElsewhere:
    """Routers follow the registry at ``registry_port``. ``ray_head``: host:port of the Ray cluster,
    joined by a node of our own at ``own_address`` ("": Ray finds out). ``config``: the file
    that the spec is from."""

    registry_port: int
    ray_head: str
    own_address: str = ""
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to serve, beside what (``spec``). Port 0: any free one. Times in seconds;
    ``patience_s``: what head and nodes of a Ray cluster that is joined may take to come."""

    spec: ClusterSpec
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8000
    admin_port: int = 50052
    ray_address: str | None = None
    patience_s: float = 0.0
    drain_s: float = 30.0
    elsewhere: RoutersElsewhere | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows from the spec and the model alone. ``max_model_len``: in tokens."""

    model: ModelFolder
    blocks: PoolBlocks
    max_model_len: int
    costs: ClusterCosts


class ServingCluster:
    """All parts of one running cluster. ``after_ray`` is called when Ray runs: when it starts, it
    takes over the process's signals."""

    def __init__(
        self, options: ServeOptions, progress: Progress, after_ray: Callable[[], None]
    ) -> None:
        self._after_ray = after_ray
        self._options = options
        self._spec = options.spec
        self._progress = progress
        elsewhere = options.elsewhere
        self._ray = RayCluster(
            elsewhere.ray_head if elsewhere else options.ray_address,
            own_address=elsewhere.own_address if elsewhere else "",
        )
        self._node = RayNode(elsewhere.ray_head, elsewhere.own_address) if elsewhere else None
        self._utilization = PoolUtilization(self._spec.slo.tpot)
        prices = {
            pool: price * self._spec.pools.of(pool).shape.num_ranks
            for pool in POOLS
            if (price := self._spec.pools.of(pool).gpu_hour_price) is not None
        }
        metrics = ControllerMetrics(self._view, prices, server_files(self._spec.tls_files))
        self._registry = Registry(metrics.render)
        admin = ClusterAdmin(self._view, lambda: self._controller, tls=self._spec.tls_files)
        self._doors = ControllerDoors(self._spec, self._registry, admin, metrics.render)
        self._controller: Controller | None = None
        self._router: RouterProcess | None = None
        self._following: asyncio.Task[None] | None = None
        self._model_name = ""

    @property
    def addresses(self) -> str:
        """For the ready line."""
        if self._options.elsewhere is not None:
            return f"registry={self._doors.registry_address} admin={self.admin_address}"
        return f"grpc={self.grpc_address} http={self.http_address}"

    @property
    def admin_address(self) -> str:
        return self._doors.admin_address

    @property
    def grpc_address(self) -> str:
        return self._router.grpc_address if self._router else ""

    @property
    def http_address(self) -> str:
        return self._router.http_address if self._router else ""

    async def start(self) -> None:
        """Returns when prompts can be answered."""
        plan = await self._plan()
        await self._start_ray()
        slots = list_slots(self._spec)
        places = Places(self._ray, self._spec, plan.model, plan.blocks)
        await self._open_doors()
        await places.place_first(slots, self._options.patience_s, self._progress.note)
        if warning := places.exposure_warning:
            self._progress.note(warning)
        self._progress.step(f"starting {len(slots)} workers: {self._names(slots)}")
        self._controller = self._new_controller(places, slots)
        if self._options.elsewhere is None:
            # It loads its tokenizer and its modules while workers load the model.
            self._router = await self._start_router(plan)
        await self._controller.start()
        if self._router is not None:
            self._progress.step("waiting for the router")
            await self._router.wait_ready()
            await self._wait_attached()
        self._follow_config(self._controller)

    async def _plan(self) -> _Plan:
        """Says what does not fit before Ray is started."""
        self._check_ports()
        always = self._spec.router.disaggregation == "always"
        self._first_wanted().check_servable(always, "set pools.prefill.replicas to at least 1")
        await asyncio.to_thread(self._check_machine)
        model = await asyncio.to_thread(locate_model, self._spec, self._progress)
        self._model_name = self._spec.served_model_name or model.name
        check_shapes(self._spec, model)
        is_own_router = self._options.elsewhere is None
        costs = router_costs(self._spec, model) if is_own_router else ROUGH_COSTS
        blocks = self._plan_blocks(model)
        return _Plan(model, blocks, plan_max_model_len(self._spec, model, blocks), costs)

    async def _start_ray(self) -> None:
        self._progress.step("starting Ray" if self._ray.is_local else "joining Ray")
        if self._node is not None:
            await self._node.start(self._options.patience_s)
        await asyncio.to_thread(self._ray.start)
        self._after_ray()

    def _follow_config(self, controller: Controller) -> None:
        elsewhere = self._options.elsewhere
        if elsewhere is not None and elsewhere.config is not None:
            replicas = WantedReplicas(elsewhere.config, self._spec)
            following = replicas.follow(controller.change, self._progress.note)
            self._following = asyncio.create_task(following)

    async def _wait_attached(self) -> None:
        """The first requests shall find all workers, not only one that decodes."""
        assert self._controller is not None
        try:
            async with asyncio.timeout(ATTACH_PATIENCE_S):
                await self._controller.wait_attached()
        except TimeoutError:
            self._progress.note("the router does not reach all workers yet; see `crossdock status`")

    async def watch(self) -> None:
        """Raises ``Unavailable`` if our router ends, without which nothing can be answered, or our
        node of Ray, without which workers can't be reached."""
        if self._node is not None:
            code = await self._node.wait_closed()
            raise Unavailable(f"the Ray node ended with exit code {code}", reason="RAY_UNAVAILABLE")
        assert self._router is not None
        code = await self._router.wait_closed()
        raise Unavailable(f"the router ended with exit code {code}", reason="ROUTER_FAILED")

    async def stop(self) -> None:
        """Drains, then takes everything down. Works at any point of the start."""
        if self._following is not None:
            self._following.cancel()
        # When our router has drained, what is left on the workers has no reader.
        drain_s = self._options.drain_s if self._router is None else 0.0
        if self._router is not None:
            await self._router.stop()
        giving_up = threading.Timer(drain_s + END_LIMIT_S, self._give_up)
        giving_up.daemon = True
        giving_up.start()
        if self._controller is not None:
            await self._controller.stop(drain_s)
        await self._doors.close()
        await self._leave_ray()
        if self._node is not None:
            await self._node.stop()
        giving_up.cancel()

    def _give_up(self) -> None:
        """Ends this process; what it started ends with it."""
        self._ray.abandon()
        os._exit(0)

    async def _leave_ray(self) -> None:
        """Ray's calls wait a minute for daemons that a signal to our whole group ended first."""
        leaving = asyncio.create_task(asyncio.to_thread(self._ray.shutdown))
        done, _ = await asyncio.wait({leaving}, timeout=LEAVE_RAY_S)
        if not done:
            # The thread can't be stopped. All that it was to end has ended already.
            self._give_up()
        leaving.result()

    async def kill(self) -> None:
        """As ``stop``, but nothing gets time to finish."""
        if self._router is not None:
            self._router.kill()
        if self._controller is not None:
            self._controller.kill()
        await self._doors.close()
        if self._node is not None:
            await self._node.stop()
        if not await asyncio.to_thread(self._ray.shutdown, KILL_PATIENCE_S):
            # Ray can't be interrupted while it starts or joins; what it started ends with us.
            os._exit(1)

    def _check_machine(self) -> None:
        """What workers on this machine would only find when Ray runs. Others may have more."""
        if not self._ray.is_local:
            return
        check_threads(self._spec, len(os.sched_getaffinity(0)))
        if self._spec.engine.device == "cuda":
            require_gpu("engine.device")

    def _check_ports(self) -> None:
        options = self._options
        ports = {"--grpc-port": options.grpc_port, "--http-port": options.http_port}
        if options.elsewhere is not None:
            ports = {"--registry-port": options.elsewhere.registry_port}
        check_ports(options.host, ports | {"--admin-port": options.admin_port})

    def _plan_blocks(self, model: ModelFolder) -> PoolBlocks:
        if self._options.elsewhere is not None:
            return plan_blocks_elsewhere(self._spec, model)
        return plan_blocks(self._spec, model, available_memory())

    def _new_controller(self, places: Places, slots: Sequence[Slot]) -> Controller:
        return Controller(
            self._ray,
            places,
            self._registry,
            slots,
            ask=self._ask_worker,
            note=self._progress.note,
            prefill_required=self._spec.router.disaggregation == "always",
        )

    async def _ask_worker(self, endpoint: str, timeout_s: float) -> worker_pb2.WorkerStats:
        stats = await ask_worker(endpoint, timeout_s, tls=self._spec.tls_files)
        self._utilization.told(stats, asyncio.get_running_loop().time())
        return stats

    async def _open_doors(self) -> None:
        options, elsewhere = self._options, self._options.elsewhere
        # A router of our own asks on loopback.
        registry = (options.host, elsewhere.registry_port) if elsewhere else (LOOPBACK, 0)
        await self._doors.open(options.host, options.admin_port, registry)
        self._progress.note(
            f"for operators (crossdock status, scale, drain …): --address {self.admin_address}"
        )
        if warning := admin_warning(self._spec, options.host):
            self._progress.note(warning)

    async def _start_router(self, plan: _Plan) -> RouterProcess:
        options = self._options
        doors = Doors(options.host, options.grpc_port, options.http_port, options.drain_s)
        settings = router_settings(
            self._spec,
            plan.model,
            self._doors.registry_address,
            doors,
            max_model_len=plan.max_model_len,
            costs=plan.costs,
        )
        return await RouterProcess.start(settings)

    def _names(self, slots: Sequence[Slot]) -> str:
        shapes = {slot: self._spec.pools.of(slot.pool).shape for slot in slots}
        split = {slot: "" if shape == ONE_RANK else f" ({shape})" for slot, shape in shapes.items()}
        return ", ".join(f"{slot.name}{split[slot]}" for slot in slots)

    def _first_wanted(self) -> Wanted:
        pools = self._spec.pools
        return Wanted(pools.prefill.replicas, pools.decode.replicas)

    def _view(self) -> ClusterView:
        controller = self._controller
        members = controller.members if controller else ()
        names = [member.slot.name for member in members]
        return ClusterView(
            model=self._model_name,
            grpc_address=self.grpc_address,
            http_address=self.http_address,
            members=members,
            shapes={pool: self._spec.pools.of(pool).shape for pool in POOLS},
            wanted=controller.wanted if controller else self._first_wanted(),
            restarts=controller.restarts if controller else 0,
            settled=controller.settled if controller else False,
            utilization={pool: self._utilization.of(pool, names) for pool in POOLS},
            metrics_address=self._doors.metrics_address,
            routers=self._registry.router_reports,
            registry_address=self._doors.registry_address,
            doors_tls=self._spec.door_files is not None,
        )
