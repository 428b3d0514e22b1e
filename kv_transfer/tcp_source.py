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
from kv_transfer.regions import checksum_part
from kv_transfer.socket_io import (
    SocketPlace,
    prepare,
    receive,
    receive_into,
    resolve,
    send,
    start_connecting,
    wait_connected,
)
from kv_transfer.transport import TCP, CopyResult, EdgeTarget

_log = logging.getLogger(__name__)
# Connecting and the self-test together.
_CONNECT_LIMIT_S = 5.0
# A copy ends long before a lease does (20 s without a sign of life on P, by default).
COPY_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where P listens, and the token that it gave us."""

    host: str
    port: int
    token: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class TcpSource:
    """The pool of one rank of P behind a TCP connection, opened again if it breaks."""

    transport = TCP

    def __init__(
        self, address: TcpAddress, target: EdgeTarget, limit_s: float = COPY_LIMIT_S
    ) -> None:
        """Connects and tests the way. Raises `Incompatible` if it does not work.

        ``limit_s``: how long one copy may take, in seconds, connecting again included.
        """
        self._address = address
        self._target = target
        self._wanted = target.plan.source_runs
        self._landing = target.plan.destination_runs
        self._limit_s = limit_s
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._aborted = False
        self._connection: socket.socket | None = None
        # Resolved once: no deadline bounds that, and one life of P stays where it is.
        with self._failing_as(f"{address} can't be reached", "TCP_UNREACHABLE"):
            self._places = resolve(address.host, address.port)
        self._connect(time.monotonic() + _CONNECT_LIMIT_S)

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
        deadline = time.monotonic() + self._limit_s
        connection = self._connection or self._connect(deadline)
        for first in range(0, len(copies), wire.MAX_PIECES):
            request = copies[first : first + wire.MAX_PIECES]
            yield from self._fetch(connection, request, deadline)

    def _fetch(
        self, connection: socket.socket, copies: Sequence[PieceCopy], deadline: float
    ) -> list[int]:
        """Prompt block indices of the pieces of one request that landed and are intact."""
        number = next(self._numbers)
        send(connection, [memoryview(wire.pack_request(number, copies))], deadline)
        head = receive(connection, wire.HEADER_BYTES + len(copies), deadline)
        flags = wire.read_answer(head, number, len(copies))
        coming = [item for item, flag in zip(copies, flags, strict=True) if flag]
        ids = np.array([item.destination for item in coming], np.int64)
        receive_into(connection, wire.views_of(self._target.blocks, ids, self._landing), deadline)
        return [item.index for item in coming if self._is_intact(item)]

    def _is_intact(self, item: PieceCopy) -> bool:
        landed = checksum_part(self._target.blocks[item.destination], self._landing)
        return self._target.matches(item.piece, landed)

    def _connect(self, deadline: float) -> socket.socket:
        """A connection that passed the self-test before ``deadline`` (monotonic seconds).

        Raises `Incompatible` if P can't be reached or is not P, ``OSError`` once aborted.
        """
        deadline = min(deadline, time.monotonic() + _CONNECT_LIMIT_S)
        with self._failing_as(f"{self._address} can't be reached", "TCP_UNREACHABLE"):
            connection = self._reach(deadline)
        with self._failing_as(f"self-test with {self._address} failed", "TCP_SELF_TEST_FAILED"):
            prepare(connection)
            self._test(connection, deadline)
        return connection

    @contextlib.contextmanager
    def _failing_as(self, what: str, reason: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._drop()
            self._refuse_if_aborted()
            raise Incompatible(f"{what}: {error}", reason=reason) from error

    def _reach(self, deadline: float) -> socket.socket:
        """Tries one address of P after the other. Raises what came of the last one."""
        failures: list[OSError] = []
        for family, place in self._places:
            try:
                connection = self._start(family, place)
                wait_connected(connection, deadline)
                return connection
            except OSError as error:
                failures.append(error)
                self._drop()
        raise failures[-1]

    def _start(self, family: int, place: SocketPlace) -> socket.socket:
        """Begins to connect. From here on `abort` reaches the connection."""
        connection = socket.socket(family, socket.SOCK_STREAM)
        with self._lock:
            self._connection = connection
            self._refuse_if_aborted()
            start_connecting(connection, place)
        return connection

    def _test(self, connection: socket.socket, deadline: float) -> None:
        """Both sides show that they know the token, and a probe as large as a part arrives."""
        greeting = receive(connection, wire.GREETING_BYTES, deadline)
        challenges = wire.Challenges(wire.read_greeting(greeting), wire.new_challenge())
        proof = challenges.pack_proof(self._address.token)
        send(connection, [memoryview(proof + wire.pack_part(self._wanted))], deadline)
        size = self._target.plan.block_bytes
        probe = receive(connection, size, deadline)
        if not hmac.compare_digest(probe, challenges.probe(self._address.token, size)):
            raise ConnectionError("the probe differs: this is not the prefill worker")

    def _refuse_if_aborted(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("the edge was given up")

    def _drop(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
