"""D's side of KV blocks over TCP: asks P for blocks and receives them into its own pool.

Covers: connecting, the self-test, fetching straight into the blocks (no staging), checksums, an
end in bounded time. A connection that failed in any way is never used again: what was on its way
can't land in a block later. Does not cover: P's side (``kv_transfer.tcp_server``).
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.errors import Incompatible
from core.lease_events import PieceCopy
from kv_transfer import tcp_wire as wire
from kv_transfer.socket_io import prepare, receive, receive_into, send
from kv_transfer.transport import TCP, CopyResult, PoolBytes, checksum

_log = logging.getLogger(__name__)
_CONNECT_LIMIT_S = 5.0
# A copy ends long before a lease does (20 s without a sign of life on P, by default).
COPY_LIMIT_S = 10.0
# Blocks are verified in groups of at most this size, while P sends the next. Smaller ones were
# slower: the sender stops and starts more often (docs/PERFORMANCE.md).
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where P listens, and the token that it gave us."""

    host: str
    port: int
    token: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class TcpSource:
    """One prefill worker's pool behind a TCP connection, opened again if it breaks."""

    transport = TCP

    def __init__(
        self, address: TcpAddress, destination: PoolBytes, limit_s: float = COPY_LIMIT_S
    ) -> None:
        """Connects and tests the way. Raises `Incompatible` if it does not work.

        ``limit_s``: how long one copy may take, in seconds.
        """
        self._address = address
        self._destination = destination
        self._limit_s = limit_s
        self._group = max(1, _GROUP_BYTES // destination.shape[1])
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._aborted = False
        self._connection: socket.socket | None = None
        self._connect()

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """As in `PieceSource`. A broken connection costs the pieces that had not landed."""
        good: list[int] = []
        try:
            for index in self._fetch_all(copies):
                good.append(index)
        except OSError as error:
            _log.warning("%s: a copy broke off: %s", self._address, error)
            self._drop()
        landed = set(good)
        bad = tuple(item.index for item in copies if item.index not in landed)
        return CopyResult(tuple(good), bad)

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.abort()
        self._drop()

    def _fetch_all(self, copies: Sequence[PieceCopy]) -> Iterator[int]:
        connection = self._connection or self._connect()
        deadline = time.monotonic() + self._limit_s
        for request in _split(copies, wire.MAX_PIECES):
            yield from self._fetch(connection, request, deadline)

    def _fetch(
        self, connection: socket.socket, copies: Sequence[PieceCopy], deadline: float
    ) -> Iterator[int]:
        """Prompt block indices of the pieces of one request, as they land and are verified."""
        number = next(self._numbers)
        send(connection, [memoryview(wire.pack_request(number, copies))], deadline)
        head = receive(connection, wire.HEADER_BYTES + len(copies), deadline)
        flags = wire.read_answer(head, number, len(copies))
        coming = [item for item, flag in zip(copies, flags, strict=True) if flag]
        for group in _split(coming, self._group):
            ids = np.array([item.destination for item in group])
            receive_into(connection, wire.block_views(self._destination, ids), deadline)
            yield from [item.index for item in group if self._is_intact(item)]

    def _is_intact(self, item: PieceCopy) -> bool:
        return checksum(self._destination[item.destination]) == item.piece.checksum

    def _connect(self) -> socket.socket:
        """Raises `Incompatible` if P can't be reached or is not P, ``OSError`` once aborted."""
        self._refuse_if_aborted()
        where = (self._address.host, self._address.port)
        try:
            connection = socket.create_connection(where, timeout=_CONNECT_LIMIT_S)
        except OSError as error:
            raise Incompatible(
                f"{self._address} can't be reached: {error}", reason="TCP_UNREACHABLE"
            ) from error
        self._hold(connection)
        try:
            prepare(connection)
            self._test(connection)
        except OSError as error:
            self._drop()
            raise Incompatible(
                f"self-test with {self._address} failed: {error}", reason="TCP_SELF_TEST_FAILED"
            ) from error
        return connection

    def _test(self, connection: socket.socket) -> None:
        """Both sides show that they know the token, and a probe as large as a block arrives."""
        deadline = time.monotonic() + _CONNECT_LIMIT_S
        greeting = receive(connection, wire.GREETING_BYTES, deadline)
        challenges = wire.Challenges(wire.read_greeting(greeting), wire.new_challenge())
        proof = challenges.pack_proof(self._address.token)
        send(connection, [memoryview(proof)], deadline)
        probe = receive(connection, wire.PROBE_BYTES, deadline)
        if not hmac.compare_digest(probe, challenges.probe(self._address.token)):
            raise ConnectionError("the probe differs: this is not the prefill worker")

    def _hold(self, connection: socket.socket) -> None:
        """From here on `abort` reaches the connection."""
        with self._lock:
            self._connection = connection
        try:
            self._refuse_if_aborted()
        except OSError:
            self._drop()
            raise

    def _refuse_if_aborted(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("the edge was given up")

    def _drop(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None


def _split(copies: Sequence[PieceCopy], size: int) -> Iterator[Sequence[PieceCopy]]:
    return (copies[i : i + size] for i in range(0, len(copies), size))
