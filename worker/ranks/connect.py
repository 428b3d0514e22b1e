"""A rank's way to its leader: connecting and the handshake, in bounded time."""

from __future__ import annotations

import contextlib
import socket
import time

from core.errors import Unavailable
from core.worker_settings import LeaderAddress
from kv_transfer.socket_io import prepare, resolve, start_connecting, wait_connected
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
    family, place = resolve(leader.host, leader.port)[0]
    with contextlib.ExitStack() as on_failure:
        connection = on_failure.enter_context(socket.socket(family, socket.SOCK_STREAM))
        start_connecting(connection, place)
        wait_connected(connection, deadline)
        prepare(connection)
        introduce(connection, leader.token, deadline)
        on_failure.pop_all()
    return connection
