"""HTTP for those who show a certificate, but for some paths: probes have none to show.

Does not cover: whose certificates are taken (``wire.tls_contexts``, which has verified any that is
shown), API keys (``router.doors.http_access``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def plain_refusal(message: str) -> web.Response:
    return web.Response(status=401, text=f"{message}\n")


def require_certificate(
    open_paths: Collection[str], refuse: Callable[[str], web.Response] = plain_refusal
) -> Middleware:
    """Answers as ``refuse`` does to who shows none and asks for anything else."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.get_extra_info("peercert")
        if not shown and request.path not in open_paths:
            return refuse("a client certificate is needed here")
        return await handler(request)

    return check
