"""``/metrics`` over HTTP for a process that has no other HTTP door, and ``/health`` for probes.

Does not cover: what is measured (``wire.exposition``).
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from core.errors import Unavailable
from core.tls_files import ServerFiles
from wire.exposition import CONTENT_TYPE
from wire.http_certificates import require_certificate
from wire.tls_contexts import server_context

# From a given port on so many are tried: several workers of a node share the setting.
_TRIED_PORTS = 64
_OPEN_PATHS = frozenset({"/health"})


class MetricsDoor:
    """``render`` gives the text of a scrape. ``start``, then ``stop``."""

    def __init__(self, render: Callable[[], Awaitable[bytes]]) -> None:
        self._render = render
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self, host: str, port: int, tls: ServerFiles | None = None) -> None:
        """On the first free port from ``port`` on; 0: any free one. `address` is host:port then.

        ``tls``: only who shows a certificate of its authority gets the metrics; None: everybody, in
        the clear. Raises ``Unavailable`` if no port is free.
        """
        context = None if tls is None else server_context(tls, open_paths=True)
        middlewares = [] if tls is None else [require_certificate(_OPEN_PATHS)]
        app = web.Application(middlewares=middlewares)
        app.add_routes([web.get("/metrics", self._scrape), web.get("/health", _health)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await _listen(runner, host, port, context)
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.address = f"{host}:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Also if it has not started."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _scrape(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=await self._render(), headers={"Content-Type": CONTENT_TYPE})


async def _health(request: web.Request) -> web.Response:
    del request
    return web.json_response({"status": "ok"})


async def _listen(
    runner: web.AppRunner, host: str, first: int, context: ssl.SSLContext | None
) -> None:
    ports = range(first, min(first + _TRIED_PORTS, 2**16)) if first else [0]
    for port in ports:
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    raise Unavailable(
        f"no port for metrics is free on {host} from {first} to {ports[-1]}; set another one "
        "(0: any free one)",
        reason="PORT_TAKEN",
        metadata={"field": "metrics", "value": str(first)},
    )
