"""A rank's way to its leader: connecting and the handshake, in bounded time."""

from __future__ import annotations

import contextlib
import socket
import time

from core.errors import Unavailable
from core.worker_settings import LeaderAddress
from worker.ranks.handshake import introduce

_LIMIT_S = 10.0


def connect_to_leader(leader: LeaderAddress, limit_s: float = _LIMIT_S) -> socket.socket:
    """A connection on which both sides have shown that they know the token.

    Raises ``Unavailable``, naming the address and what failed.
    """
    deadline = time.monotonic() + limit_s
    try:
        return _connect(leader, deadline)
    except OSError as error:
        place = f"{leader.host}:{leader.port}"
        raise Unavailable(
            f"the leading rank at {place} can't be reached: {error}",
            reason="LEADER_UNREACHABLE",
            metadata={"address": place},
        ) from error


def _connect(leader: LeaderAddress, deadline: float) -> socket.socket:
    left_s = deadline - time.monotonic()
    with contextlib.ExitStack() as on_failure:
        connection = socket.create_connection((leader.host, leader.port), left_s)
        on_failure.enter_context(connection)
        introduce(connection, leader.token, deadline)
        on_failure.pop_all()
    return connection
