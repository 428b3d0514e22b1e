"""P's side of connections that decode workers make with a token: who may speak, and until when.

Covers: one listener, one thread per connection, tokens and their end, strangers, TLS if it is asked
for. Greeting and proof are those of ``kv_transfer.tcp_wire``. Does not cover: what is said then.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.errors import Incompatible
from core.tls_files import TlsFiles
from kv_transfer import tcp_wire as wire
from kv_transfer.socket_io import prepare, wake
from kv_transfer.tcp_channel import Channel, channel_over, receive_bytes, send_bytes
from wire.tls_contexts import require_name, server_context

_log = logging.getLogger(__name__)
_HANDSHAKE_LIMIT_S = 5.0
_ACCEPT_PAUSE_S = 0.1
# Strangers who connect and say nothing must not use up threads.
_MAX_STRANGERS = 64
# Of one token, that is of all ranks of a decode worker with all their streams.
_MAX_CONNECTIONS = 256
# Shows that P knows the token, too.
_PROOF_OF_PREFILL_BYTES = 32


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """Where P listens, and the token that it gave us."""

    host: str
    port: int
    token: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection on which both sides have shown that they know the token.

    ``known_bytes(size)`` are the same on both sides and nowhere else: what a self-test ships.
    """

    connection: socket.socket
    channel: Channel
    challenges: wire.Challenges
    token: bytes = field(repr=False)
    # Of the handshake, in monotonic seconds.
    deadline: float

    def known_bytes(self, size: int) -> bytes:
        return self.challenges.probe(self.token, size)

    def show_token(self) -> None:
        """P's side: shows that it knows the token, too, where nothing else will."""
        send_bytes(self.channel, self.known_bytes(_PROOF_OF_PREFILL_BYTES), self.deadline)


class TokenListener:
    """Listens on ``host``, any free port; ``serve`` runs in a thread of its own for each peer.

    The connection is closed when ``serve`` returns; it gets an ``OSError`` from the connection when
    the token is revoked.
    """

    def __init__(
        self,
        host: str,
        name: str,
        serve: Callable[[Admitted], None],
        tls: TlsFiles | None = None,
    ) -> None:
        """``tls``: take only members of the cluster; None: in the clear."""
        self._name = name
        self._tls = tls
        self._context = server_context(tls.as_server) if tls is not None else None
        self._serve_admitted = serve
        self._lock = threading.Lock()
        self._tokens: list[bytes] = []
        # None until the peer has shown that it knows a token.
        self._connections: dict[socket.socket, bytes | None] = {}
        self._threads: set[threading.Thread] = set()
        self._closing = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        self._acceptor.start()

    def invite(self) -> bytes:
        """A new token, good for one decode worker until it is revoked."""
        token = secrets.token_bytes(wire.TOKEN_BYTES)
        with self._lock:
            self._tokens.append(token)
        return token

    def revoke(self, token: bytes) -> None:
        """Ends the connections of those who came with ``token``. Without effect if done before."""
        with self._lock:
            if token in self._tokens:
                self._tokens.remove(token)
            for connection, shown in self._connections.items():
                if shown == token:
                    wake(connection)

    def close(self, limit_s: float | None = None) -> None:
        """Ends all connections; waits for their threads, for so long each."""
        with self._lock:
            self._closing = True
            for connection in self._connections:
                wake(connection)
            threads = list(self._threads)
        # shutdown() wakes accept(), close() alone would not.
        wake(self._listener)
        self._acceptor.join()
        self._listener.close()
        for thread in threads:
            thread.join(limit_s)
            if thread.is_alive():
                _log.warning("%s: a thread is left behind, stuck in a library", self._name)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                # Out of descriptors, most likely: peers try again, and so do we.
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            with contextlib.suppress(OSError):
                self._welcome(self._wrap(connection))

    def _wrap(self, connection: socket.socket) -> socket.socket:
        """Says nothing yet: a peer that does not answer must not hold up others."""
        if self._context is None:
            return connection
        return self._context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )

    def _welcome(self, connection: socket.socket) -> None:
        with self._lock:
            strangers = sum(token is None for token in self._connections.values())
            if self._closing or strangers >= _MAX_STRANGERS:
                connection.close()
                return
            self._connections[connection] = None
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"{self._name}-serve", daemon=True
            )
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError as error:
                # Out of threads: only this peer is turned away, later ones may find room.
                _log.warning("a connection can't be served: %s", error)
                self._threads.discard(thread)
                del self._connections[connection]
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            admitted = self._admit(connection)
            if admitted is not None:
                self._serve_admitted(admitted)
        except OSError as error:
            _log.debug("a connection ended: %s", error)
        finally:
            with self._lock:
                del self._connections[connection]
                self._threads.discard(threading.current_thread())
            connection.close()

    def _admit(self, connection: socket.socket) -> Admitted | None:
        """None if the peer knows no token. It has heard nothing but the greeting then."""
        prepare(connection)
        channel = channel_over(connection)
        deadline = time.monotonic() + _HANDSHAKE_LIMIT_S
        channel.shake_hands(deadline)
        if self._tls is not None and isinstance(connection, ssl.SSLSocket):
            require_name(connection, self._tls.name)
        challenge = wire.new_challenge()
        send_bytes(channel, wire.pack_greeting(challenge), deadline)
        proof = receive_bytes(channel, wire.PROOF_BYTES, deadline)
        found = self._recognize(connection, challenge, proof)
        return Admitted(connection, channel, *found, deadline) if found is not None else None

    def _recognize(
        self, connection: socket.socket, challenge: bytes, proof: bytearray
    ) -> tuple[wire.Challenges, bytes] | None:
        """The challenges of this connection and its token; None if it has to go."""
        with self._lock:
            found = wire.Challenges.read_proof(challenge, proof, self._tokens)
            if found is None or self._closing:
                return None
            same = sum(token == found[1] for token in self._connections.values())
            if same >= _MAX_CONNECTIONS:
                _log.warning("a decode worker has %d connections and gets no more", same)
                return None
            self._connections[connection] = found[1]
            return found


def connect_with_token(address: TokenAddress, limit_s: float = _HANDSHAKE_LIMIT_S) -> Admitted:
    """D's side: connects, and both show that they know the token.

    Raises `Incompatible` if nobody is there, or not P.
    """
    deadline = time.monotonic() + limit_s
    try:
        connection = socket.create_connection((address.host, address.port), limit_s)
    except OSError as error:
        raise Incompatible(
            f"{address} can't be reached: {error}", reason="PREFILL_UNREACHABLE"
        ) from error
    try:
        return _prove(connection, address.token, deadline)
    except OSError as error:
        connection.close()
        raise Incompatible(
            f"the handshake with {address} failed: {error}", reason="PREFILL_UNKNOWN"
        ) from error


def _prove(connection: socket.socket, token: bytes, deadline: float) -> Admitted:
    prepare(connection)
    channel = channel_over(connection)
    greeting = receive_bytes(channel, wire.GREETING_BYTES, deadline)
    challenges = wire.Challenges(wire.read_greeting(greeting), wire.new_challenge())
    send_bytes(channel, challenges.pack_proof(token), deadline)
    admitted = Admitted(connection, channel, challenges, token, deadline)
    shown = receive_bytes(channel, _PROOF_OF_PREFILL_BYTES, deadline)
    if not secrets.compare_digest(bytes(shown), admitted.known_bytes(_PROOF_OF_PREFILL_BYTES)):
        raise ConnectionError("what answers there is not the prefill worker")
    return admitted
