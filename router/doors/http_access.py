"""Who may use which path of the HTTP door: probes are open, the rest needs a key or a token.

A tenant's API key opens what it can ask for. Metrics name tenants and workers, but nothing of
prompts: they are open unless the config has tokens for them.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

_OPEN = frozenset({"/health", "/ready", "/version"})
_METRICS = frozenset({"/metrics", "/metrics/cluster", "/metrics/targets"})
_TENANT = web.RequestKey("tenant", str)


def access_middleware(
    tenant: Callable[[str | None], str], check_watcher: Callable[[str | None], None]
) -> Middleware:
    """Both go by the Authorization header and raise Unauthenticated. ``tenant``: whose call it is.
    ``check_watcher``: whether who calls may see metrics."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _METRICS:
            check_watcher(request.headers.get(hdrs.AUTHORIZATION))
        elif request.path not in _OPEN:
            request[_TENANT] = tenant(request.headers.get(hdrs.AUTHORIZATION))
        return await handler(request)

    return check


def tenant_of(request: web.Request) -> str:
    """Of a request to a path for tenants."""
    return request[_TENANT]
