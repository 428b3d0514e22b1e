"""A rank's way to its leader: connecting and the handshake, again until the leader has time."""

from __future__ import annotations

import contextlib
import socket
import time

from core.errors import Unavailable
from core.tls_files import TlsFiles
from core.worker_settings import LeaderAddress
from worker.ranks.handshake import introduce
from worker.ranks.tls_connection import RankSocket, secured_client

# As long as the leader waits for all to join.
_LIMIT_S = 120.0
_ATTEMPT_S = 10.0
_PAUSE_S = 0.2
# A leader that starves, or that strangers keep busy. Anything else stays as it is.
_PASSING = (TimeoutError, ConnectionResetError, BrokenPipeError)


def connect_to_leader(
    leader: LeaderAddress,
    tls: TlsFiles | None = None,
    *,
    limit_s: float = _LIMIT_S,
    attempt_s: float = _ATTEMPT_S,
) -> RankSocket:
    """A connection on which both sides have shown that they know the token, over TLS unless
    ``tls`` is None.

    A leader that says nothing for ``attempt_s`` or hangs up is tried again; no attempt begins after
    ``limit_s``. Raises ``Unavailable``, naming the address and what failed at last.
    """
    last_start = time.monotonic() + limit_s
    while True:
        try:
            return _attempt(leader, tls, attempt_s)
        except Unavailable as error:
            if not isinstance(error.__cause__, _PASSING) or time.monotonic() >= last_start:
                raise
        time.sleep(_PAUSE_S)


def _attempt(leader: LeaderAddress, tls: TlsFiles | None, limit_s: float) -> RankSocket:
    try:
        return _connect(leader, tls, time.monotonic() + limit_s)
    except OSError as error:
        place = f"{leader.host}:{leader.port}"
        raise Unavailable(
            f"the leading rank at {place} can't be reached: {error}",
            reason="LEADER_UNREACHABLE",
            metadata={"address": place},
        ) from error


def _connect(leader: LeaderAddress, tls: TlsFiles | None, deadline: float) -> RankSocket:
    left_s = deadline - time.monotonic()
    with contextlib.ExitStack() as on_failure:
        connection = socket.create_connection((leader.host, leader.port), left_s)
        on_failure.enter_context(connection)
        secured = secured_client(connection, tls, deadline)
        introduce(secured, leader.token, deadline)
        on_failure.pop_all()
    return secured
