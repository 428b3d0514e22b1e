"""Makes the tickets with which clients read tokens from decode workers.

Does not cover: what a ticket is (``wire.tickets``), who gets one (``router.flow.flow``).
"""

from __future__ import annotations

import secrets

from core.request import AttemptKey
from crossdock.v1.token_stream_pb2 import TicketClaims
from router.placement import WorkerId
from wire.attempts import key_to_wire
from wire.tickets import KEY_BYTES, sign


class ReadTickets:
    """Those of one router. ``key``: what workers check them with; new in each life of a router."""

    def __init__(self, router_id: str) -> None:
        self.key = secrets.token_bytes(KEY_BYTES)
        self._router_id = router_id

    def issue(self, worker: WorkerId, key: AttemptKey) -> bytes:
        """For the tokens of this attempt on this worker alone."""
        claims = TicketClaims(
            router_id=self._router_id,
            worker=worker.name,
            epoch=worker.epoch,
            key=key_to_wire(key),
        )
        return sign(claims, self.key)
