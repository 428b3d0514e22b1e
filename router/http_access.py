"""Who may use which path of the HTTP door: all but a few need a tenant.

Open are those by which others watch the router, because probes and scrapers have no API key. They
tell numbers and names, and nothing of prompts.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

_OPEN = frozenset(
    {"/health", "/ready", "/version", "/metrics", "/metrics/cluster", "/metrics/targets"}
)
_TENANT = web.RequestKey("tenant", str)


def access_middleware(tenant: Callable[[str | None], str]) -> Middleware:
    """``tenant``: whose call it is by its Authorization header; raises Unauthenticated."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN:
            request[_TENANT] = tenant(request.headers.get(hdrs.AUTHORIZATION))
        return await handler(request)

    return check


def tenant_of(request: web.Request) -> str:
    """Of a request to a path that is not open."""
    return request[_TENANT]
