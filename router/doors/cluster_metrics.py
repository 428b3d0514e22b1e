"""What all processes measure, through the router: for who can't reach them or doesn't know them.

``/metrics/cluster``: the metrics of this router, of each attached worker and of the controller in
one text. ``/metrics/targets``: where each of them tells its own, for Prometheus' discovery over
HTTP (``http_sd_configs``). Does not cover: other routers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import grpc.aio
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from core.errors import Unavailable
from router.metrics.metric_table import SCRAPED
from router.metrics.metrics import Metrics
from router.requests.dispatcher import Dispatcher
from router.workers.directory import Directory
from wire.exposition import CONTENT_TYPE, merge, new_gauge

log = logging.getLogger(__name__)

# Prometheus waits for ten seconds by default.
_ASK_TIMEOUT_S = 3.0
_LOOPBACK = "127.0.0.1"
_ANY_HOST = ("0.0.0.0", "::", "[::]")
CONTROLLER = "controller"


class ClusterMetricsDoor:
    """``doors_tls``, ``workers_tls``: whether this router's own metrics, and those of workers and
    controller, are over TLS."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: Metrics,
        directory: Directory,
        *,
        doors_tls: bool = False,
        workers_tls: bool = False,
    ) -> None:
        self._own_scheme = _scheme(doors_tls)
        self._scheme = _scheme(workers_tls)
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._directory = directory

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/metrics/cluster", self._render),
            web.get("/metrics/targets", self._list_targets),
        ]

    async def _render(self, request: web.Request) -> web.Response:
        asked: dict[str, Awaitable[bytes]] = {
            pooled.worker.name: pooled.link.metrics(_ASK_TIMEOUT_S)
            for pooled in self._dispatcher.pool.attached_workers()
        }
        asked[CONTROLLER] = self._directory.metrics(_ASK_TIMEOUT_S)
        told = await asyncio.gather(*(_or_nothing(name, text) for name, text in asked.items()))
        scraped = _scraped(dict(zip(asked, map(bool, told), strict=True)))
        own = self._metrics.render(self._dispatcher.state)
        return web.Response(
            body=merge([own, *told, scraped]), headers={"Content-Type": CONTENT_TYPE}
        )

    async def _list_targets(self, request: web.Request) -> web.Response:
        targets = [_target("router", request.host, self._own_scheme)]
        if self._directory.metrics_address:
            address = self._controller_address(request)
            targets.append(_target(CONTROLLER, address, self._scheme))
        targets += [
            _target("worker", pooled.metrics_address, self._scheme)
            for pooled in self._dispatcher.pool.attached_workers()
            if pooled.metrics_address
        ]
        return web.json_response(targets)

    def _controller_address(self, request: web.Request) -> str:
        """One that listens on all addresses is reached where its registry is; if that is on this
        host, as this router is."""
        told = self._directory.metrics_address
        host, _, port = told.rpartition(":")
        registry = self._directory.address.rpartition(":")[0]
        if host not in _ANY_HOST:
            return told
        reached = request.url.host if registry in (_LOOPBACK, *_ANY_HOST) else registry
        return f"{reached}:{port}"


async def _or_nothing(process: str, text: Awaitable[bytes]) -> bytes:
    try:
        return await text
    except (grpc.aio.AioRpcError, Unavailable) as error:
        log.info("%s tells no metrics: %s", process, error)
        return b""


def _scraped(answered: dict[str, bool]) -> bytes:
    registry = CollectorRegistry()
    gauge = new_gauge(SCRAPED, registry)
    for process, told in answered.items():
        gauge.labels(process).set(told)
    return generate_latest(registry)


def _scheme(tls: bool) -> dict[str, str]:
    """The label by which Prometheus is told."""
    return {"__scheme__": "https"} if tls else {}


def _target(process: str, address: str, scheme: dict[str, str]) -> dict[str, object]:
    """``process`` is a label of the target; ``worker`` and ``role`` are on the samples."""
    return {"targets": [address], "labels": {"process": process, **scheme}}
