"""What a client of the router is told of an error that we did not foresee.

Does not cover: how an error is written (``wire.grpc_errors``, ``router.doors.http_errors``).
"""

from __future__ import annotations

import logging

from core.errors import CrossdockError, InternalError

log = logging.getLogger(__name__)


def as_crossdock_error(error: Exception) -> CrossdockError:
    """What a client is told of ``error``; what we did not foresee is logged, not told."""
    if isinstance(error, CrossdockError):
        return error
    log.error("unforeseen error in a request", exc_info=error)
    return InternalError("an error inside the router; its log tells more", reason="INTERNAL")
