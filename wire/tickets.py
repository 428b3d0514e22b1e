"""Tickets with which clients read the tokens of an attempt from its decode worker.

A ticket is the HMAC-SHA256 (RFC 2104) of ``TicketClaims`` (token_stream.proto), and then these.
The key is the router's that made the ticket; workers have it by that router's stream.
Does not cover: until when a ticket holds, which is the worker's to say by its own clock
(``decode_worker.readable_answers``): the two have no common one.
"""

from __future__ import annotations

import hashlib
import hmac

from google.protobuf.message import DecodeError

from core.errors import Unauthenticated
from crossdock.v1.token_stream_pb2 import TicketClaims

KEY_BYTES = 32
_MAC_BYTES = hashlib.sha256().digest_size


def sign(claims: TicketClaims, key: bytes) -> bytes:
    """The ticket. ``key``: ``KEY_BYTES`` random bytes."""
    body = claims.SerializeToString(deterministic=True)
    return _mac(body, key) + body


def claims_of(ticket: bytes) -> TicketClaims:
    """What it says; nothing of it is proven before ``check``. Raises ``Unauthenticated``."""
    try:
        return TicketClaims.FromString(ticket[_MAC_BYTES:])
    except DecodeError:
        raise refusal() from None


def check(ticket: bytes, key: bytes | None) -> None:
    """Raises ``Unauthenticated`` unless it was signed with ``key``; None: nobody's."""
    mac, body = ticket[:_MAC_BYTES], ticket[_MAC_BYTES:]
    if not key or not hmac.compare_digest(mac, _mac(body, key)):
        raise refusal()


def refusal() -> Unauthenticated:
    return Unauthenticated(
        "this is not a ticket of a router of this worker; take one from an answer's stream",
        reason="TICKET_REFUSED",
    )


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")
