"""HTTP endpoints for those who watch the router: health, readiness, metrics, version.

Does not cover: the metrics of other processes (``router.doors.cluster_metrics``).
"""

from __future__ import annotations

from aiohttp import web

from router.intake.request_intake import RequestIntake
from router.metrics.metrics import Metrics
from router.requests.dispatcher import Dispatcher
from wire.exposition import CONTENT_TYPE

# By those who have nothing to show: Kubernetes, and who starts the router.
PROBED_PATHS = frozenset({"/health", "/ready"})


class StatusDoor:
    def __init__(
        self, intake: RequestIntake, dispatcher: Dispatcher, metrics: Metrics, version: str
    ) -> None:
        self._intake = intake
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._version = version

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.get("/metrics", self._render_metrics),
            web.get("/version", self._tell_version),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        """200 only while a worker that decodes can get requests."""
        ready = self._dispatcher.pool.ready and not self._intake.draining
        status = "ready" if ready else "no decode worker, or shutting down"
        return web.json_response({"status": status}, status=200 if ready else 503)

    async def _render_metrics(self, request: web.Request) -> web.Response:
        text = self._metrics.render(self._dispatcher.state)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _tell_version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self._version})
