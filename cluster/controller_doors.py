"""The controller's ports: the registry for routers, the operators' door, `/metrics`.

Covers: opening them with what each shows of TLS and asks of who comes, health and reflection for
operators, closing them. Does not cover: what is answered (``cluster.registry``, ``cluster.admin``,
``cluster.metrics``), who may ask what (``cluster.admin_access``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.admin import ClusterAdmin
from cluster.admin_access import admin_files, admin_interceptors
from cluster.registry import Registry
from core.config import ClusterSpec
from core.tls_files import ServerFiles, server_files
from crossdock.v1 import admin_pb2, admin_pb2_grpc, registry_pb2_grpc
from wire.metrics_door import MetricsDoor
from wire.peer_check import members_only
from wire.tls_grpc import open_port


class ControllerDoors:
    """``open``, then ``close``. ``metrics`` gives the text of a scrape. Addresses are host:port, ""
    before they are open."""

    def __init__(
        self,
        spec: ClusterSpec,
        registry: Registry,
        admin: ClusterAdmin,
        metrics: Callable[[], bytes],
    ) -> None:
        self.registry_address = ""
        self.admin_address = ""
        self._spec = spec
        self._registry = registry
        self._admin = admin
        self._metrics = metrics
        self._metrics_door = MetricsDoor(self._render_metrics)
        self._servers: list[grpc.aio.Server] = []

    @property
    def metrics_address(self) -> str:
        return self._metrics_door.address

    async def open(self, host: str, admin_port: int, registry: tuple[str, int]) -> None:
        """Operators and scrapers come to ``host``, routers to ``registry``. Port 0: any free one.
        Raises ``Unavailable`` if a port is taken, ``InvalidField`` if files of TLS can't be used.
        """
        files = server_files(self._spec.tls_files)
        await self._metrics_door.start(host, self._spec.metrics.controller_port, files)
        self._registry.metrics_address = self._metrics_door.address
        self.registry_address = await self._open_registry(*registry, files)
        self.admin_address = await self._open_admin(host, admin_port)

    async def close(self) -> None:
        """Also if they are not open, or not all of them."""
        for server in self._servers:
            await server.stop(grace=None)
        self._servers.clear()
        await self._metrics_door.stop()

    async def _open_registry(self, host: str, port: int, files: ServerFiles | None) -> str:
        server = _new_server(members_only(self._spec.tls_files))
        registry_pb2_grpc.add_RegistryServicer_to_server(self._registry, server)
        return await self._listen(server, host, port, files)

    async def _open_admin(self, host: str, port: int) -> str:
        server = _new_server(admin_interceptors(self._spec))
        admin_pb2_grpc.add_ClusterAdminServicer_to_server(self._admin, server)
        await _add_health_and_reflection(server)
        return await self._listen(server, host, port, admin_files(self._spec))

    async def _listen(
        self, server: grpc.aio.Server, host: str, port: int, files: ServerFiles | None
    ) -> str:
        bound = open_port(server, f"{host}:{port}", files)
        await server.start()
        self._servers.append(server)
        return f"{host}:{bound}"

    async def _render_metrics(self) -> bytes:
        return self._metrics()


def _new_server(interceptors: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:  # type: ignore[type-arg]
    # Two clusters must not share a port by accident.
    return grpc.aio.server(options=[("grpc.so_reuseport", 0)], interceptors=interceptors)


async def _add_health_and_reflection(server: grpc.aio.Server) -> None:
    service = admin_pb2.DESCRIPTOR.services_by_name["ClusterAdmin"].full_name
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    for name in ("", service):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
