"""A TCP connection between two ranks over TLS, read by one thread while others write.

OpenSSL takes one thread at a time for a connection, and a read must not hold up writes: so it works
on buffers of ours, under a lock, and nobody waits for the network with it.
Does not cover: who the peer is beyond its certificate (``worker.ranks.handshake``).
"""

from __future__ import annotations

import socket
import ssl
import threading
import time

from core.tls_files import TlsFiles
from wire.tls_contexts import client_context, require_name

_RECEIVE_BYTES = 256 << 10


class TlsConnection:
    """Takes the place of ``connection``, in as far as ranks use a socket. One thread may read while
    one writes; ``shutdown`` is for all."""

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, server_name: str | None
    ) -> None:
        """``server_name``: what the server's certificate has to be for; None: this is the server.
        Call `shake_hands` next."""
        self._socket = connection
        self._lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_name is None,
            server_hostname=server_name,
        )

    def shake_hands(self, deadline: float) -> None:
        """``deadline``: monotonic seconds. Raises ``OSError``."""
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                # So that the peer hears why.
                self._flush()
                raise
            self._socket.settimeout(_left_s(deadline))
            if not self._feed():
                raise ConnectionResetError("the peer closed the connection")

    def require_name(self, name: str) -> None:
        """Raises ``ConnectionError`` unless the peer's certificate carries this DNS name."""
        require_name(self._tls, name)

    def sendall(self, data: bytes) -> None:
        with self._lock:
            left = memoryview(data)
            while left.nbytes:
                left = left[self._tls.write(left) :]
        self._flush()

    def recv(self, size: int) -> bytes:
        """At least a byte, or none at the end of the stream."""
        while True:
            with self._lock:
                try:
                    return self._tls.read(size)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return b""
            if not self._feed():
                return b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        self._socket.setblocking(blocking)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._socket.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> TlsConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _feed(self) -> bool:
        """Waits for bytes of the peer; false if there are no more."""
        received = self._socket.recv(_RECEIVE_BYTES)
        with self._lock:
            self._incoming.write(received)
        return bool(received)

    def _flush(self) -> None:
        with self._lock:
            encrypted = self._outgoing.read()
        if encrypted:
            self._socket.sendall(encrypted)


RankSocket = socket.socket | TlsConnection


def secured_client(connection: socket.socket, tls: TlsFiles | None, deadline: float) -> RankSocket:
    """``connection`` to a member of the cluster, as it is (None) or over TLS once the handshake is
    over. Raises ``OSError``."""
    if tls is None:
        return connection
    secured = TlsConnection(connection, client_context(tls), tls.name)
    secured.shake_hands(deadline)
    return secured


def secured_server(
    connection: socket.socket, context: ssl.SSLContext, name: str, deadline: float
) -> TlsConnection:
    """The other end, for peers whose certificate carries ``name``. Raises ``OSError``."""
    secured = TlsConnection(connection, context, None)
    secured.shake_hands(deadline)
    secured.require_name(name)
    return secured


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s
