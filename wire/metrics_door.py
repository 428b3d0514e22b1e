"""``/metrics`` over HTTP for a process that has no other HTTP door."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from aiohttp import web

from core.errors import Unavailable
from wire.exposition import CONTENT_TYPE

# From a given port on so many are tried: several workers of a node share the setting.
_TRIED_PORTS = 64


class MetricsDoor:
    """``render`` gives the text of a scrape. ``start``, then ``stop``."""

    def __init__(self, render: Callable[[], Awaitable[bytes]]) -> None:
        self._render = render
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self, host: str, port: int) -> None:
        """On the first free port from ``port`` on; 0: any free one. `address` is host:port then.

        Raises ``Unavailable`` if none is free.
        """
        app = web.Application()
        app.add_routes([web.get("/metrics", self._scrape)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await _listen(runner, host, port)
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


async def _listen(runner: web.AppRunner, host: str, first: int) -> None:
    ports = range(first, min(first + _TRIED_PORTS, 2**16)) if first else [0]
    for port in ports:
        try:
            await web.TCPSite(runner, host, port).start()
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
