"""D's end of one TCP connection to a rank of P: asks for parts of blocks, receives them in place.

Covers: connecting, the self-test, fetching straight into the blocks (no staging), checksums, an
end in bounded time. A connection that failed in any way is never used again: what was on its way
can't land in a block later. Does not cover: several connections (``kv_transfer.tcp_source``), P's
side (``kv_transfer.tcp_server``).
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

import numpy as np

from core.errors import Incompatible
from core.lease_events import PieceCopy
from core.tls_files import TlsFiles
from kv_transfer import tcp_wire as wire
from kv_transfer.iovecs import over_parts
from kv_transfer.regions import digest, part_view
from kv_transfer.socket_io import SocketPlace, prepare, start_connecting, wait_connected, wake
from kv_transfer.tcp_channel import Channel, channel_over, receive_bytes, send_bytes
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import EdgeTarget
from wire.tls_contexts import client_context

_log = logging.getLogger(__name__)
# Connecting and the self-test together.
CONNECT_LIMIT_S = 5.0
# Received by one call and then verified: few calls, each of which has to get the interpreter lock
# back from the engine's thread, of bytes that are still in the cache when they are hashed.
_GROUP_BYTES = 4 << 20


class TcpStream:
    """One connection, opened again if it breaks. Used by one thread at a time, but for `abort`."""

    def __init__(
        self,
        address: TokenAddress,
        places: Sequence[tuple[int, SocketPlace]],
        target: EdgeTarget,
        tls: TlsFiles | None,
    ) -> None:
        """``places``: what ``address`` stands for. Connects when told to; ``tls`` None: in the
        clear."""
        self._address = address
        self._places = places
        self._target = target
        self._tls = tls
        self._wanted = target.plan.source_runs
        self._landing = target.plan.destination_runs
        self._landed = part_view(target.blocks, self._landing)
        self._part_bytes = target.plan.block_bytes
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._aborted = False
        self._connection: socket.socket | None = None
        # None until the self-test is passed.
        self._channel: Channel | None = None

    def fetch(self, copies: Sequence[PieceCopy], deadline: float) -> set[int]:
        """Prompt block indices of the pieces that landed and are intact before ``deadline``.

        Raises `Incompatible` if there is no connection any more and none can be had.
        """
        landed: set[int] = set()
        if not copies:
            return landed
        try:
            channel = self._channel or self.connect(deadline)
            for first in range(0, len(copies), wire.MAX_PIECES):
                request = copies[first : first + wire.MAX_PIECES]
                for index in self._fetch(channel, request, deadline):
                    landed.add(index)
        except OSError as error:
            _log.warning("%s: a copy broke off: %s", self._address, error)
            self._drop()
        return landed

    def connect(self, deadline: float) -> Channel:
        """A connection that passed the self-test before ``deadline`` (monotonic seconds).

        Raises `Incompatible` if P can't be reached or is not P, ``OSError`` once aborted.
        """
        deadline = min(deadline, time.monotonic() + CONNECT_LIMIT_S)
        with self._failing_as(f"{self._address} can't be reached", "TCP_UNREACHABLE"):
            connection = self._reach(deadline)
        with self._failing_as(f"self-test with {self._address} failed", "TCP_SELF_TEST_FAILED"):
            prepare(connection)
            channel = channel_over(self._wrap(connection))
            channel.shake_hands(deadline)
            self._test(channel, deadline)
        self._channel = channel
        return channel

    def abort(self) -> None:
        """Makes a running call end at once, and later ones fetch nothing. From any thread."""
        with self._lock:
            self._aborted = True
            if self._connection is not None:
                wake(self._connection)

    def close(self) -> None:
        self.abort()
        self._drop()

    def _fetch(
        self, channel: Channel, copies: Sequence[PieceCopy], deadline: float
    ) -> Iterator[int]:
        """One request."""
        number = next(self._numbers)
        send_bytes(channel, wire.pack_request(number, copies), deadline)
        # While P reads that.
        ids = np.array([item.destination for item in copies], np.int64)
        places = over_parts(self._target.blocks, ids, self._landing)
        head = receive_bytes(channel, wire.HEADER_BYTES + len(copies), deadline)
        flags = wire.read_answer(head, number, len(copies))
        coming = [item for item, flag in zip(copies, flags, strict=True) if flag]
        size, runs = max(1, _GROUP_BYTES // self._part_bytes), len(self._landing)
        places = places[np.repeat(flags, runs)]
        for first in range(0, len(coming), size):
            channel.receive_into(places[first * runs : (first + size) * runs], deadline)
            yield from (
                item.index for item in coming[first : first + size] if self._is_intact(item)
            )

    def _is_intact(self, item: PieceCopy) -> bool:
        return self._target.matches(item.piece, digest(self._landed[item.destination]))

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
                connection = socket.socket(family, socket.SOCK_STREAM)
                self._hold(connection)
                start_connecting(connection, place)
                wait_connected(connection, deadline)
                return connection
            except OSError as error:
                failures.append(error)
                self._drop()
        raise failures[-1]

    def _wrap(self, connection: socket.socket) -> socket.socket:
        if self._tls is None:
            return connection
        wrapped = client_context(self._tls).wrap_socket(
            connection, do_handshake_on_connect=False, server_hostname=self._tls.name
        )
        self._hold(wrapped)
        return wrapped

    def _hold(self, connection: socket.socket) -> None:
        """From here on `abort` reaches the connection."""
        with self._lock:
            self._connection = connection
            self._refuse_if_aborted()

    def _test(self, channel: Channel, deadline: float) -> None:
        """Both sides show that they know the token, and a probe as large as a part arrives."""
        greeting = receive_bytes(channel, wire.GREETING_BYTES, deadline)
        challenges = wire.Challenges(wire.read_greeting(greeting), wire.new_challenge())
        proof = challenges.pack_proof(self._address.token)
        send_bytes(channel, proof + wire.pack_part(self._wanted), deadline)
        probe = receive_bytes(channel, self._part_bytes, deadline)
        expected = challenges.probe(self._address.token, self._part_bytes)
        if not hmac.compare_digest(probe, expected):
            raise ConnectionError("the probe differs: this is not the prefill worker")

    def _refuse_if_aborted(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("the edge was given up")

    def _drop(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._channel = None
