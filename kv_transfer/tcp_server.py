"""P's side of KV blocks over TCP: sends blocks of its pool to decode workers that it invited.

Covers: one listener, one thread per connection, tokens and their end, limits on what is read and on
what is under way: a connection carries one request at a time, straight from the pool to a peer that
takes it straight into its own. P only ever reads its pool here. A block that moves on while it is
sent is found by D's checksum; that is rare, for P keeps announced blocks until D has them.
Does not cover: the bytes of the messages (``kv_transfer.tcp_wire``), D's side
(``kv_transfer.tcp_source``).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time

from core.tls_files import TlsFiles
from core.transfer_plan import Runs
from kv_transfer import tcp_wire as wire
from kv_transfer.iovecs import over, over_parts
from kv_transfer.regions import PoolBytes
from kv_transfer.socket_io import prepare, wake
from kv_transfer.tcp_channel import Channel, channel_over, receive_bytes, send_bytes
from kv_transfer.tls import server_context
from kv_transfer.transport import Generations

_log = logging.getLogger(__name__)
_HANDSHAKE_LIMIT_S = 5.0
# D gives a copy up earlier (`kv_transfer.tcp_source`).
_ANSWER_LIMIT_S = 20.0
_ACCEPT_PAUSE_S = 0.1
# Strangers who connect and say nothing must not use up threads.
_MAX_STRANGERS = 64
# Of one token, that is of all ranks of a decode worker with all their streams.
_MAX_CONNECTIONS = 256


class TcpServer:
    """Listens on ``host``, any free port."""

    def __init__(
        self,
        host: str,
        pool: PoolBytes,
        generations: Generations,
        tls: TlsFiles | None = None,
    ) -> None:
        """``tls``: take only peers with a certificate; None: in the clear."""
        self._tls = server_context(tls) if tls is not None else None
        self._pool = pool
        self._generations = generations
        self._lock = threading.Lock()
        self._tokens: list[bytes] = []
        # None until the peer has shown that it knows a token.
        self._connections: dict[socket.socket, bytes | None] = {}
        self._threads: set[threading.Thread] = set()
        self._closing = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="tcp-accept", daemon=True)
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

    def close(self) -> None:
        """Returns when all threads and connections have ended."""
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
            thread.join()

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
        if self._tls is None:
            return connection
        return self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def _welcome(self, connection: socket.socket) -> None:
        with self._lock:
            strangers = sum(token is None for token in self._connections.values())
            if self._closing or strangers >= _MAX_STRANGERS:
                connection.close()
                return
            self._connections[connection] = None
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="tcp-serve", daemon=True
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
            prepare(connection)
            channel = channel_over(connection)
            runs = self._admit(connection, channel)
            while runs is not None:
                channel.wait_readable()
                self._answer(channel, runs)
        except OSError as error:
            _log.debug("a connection ended: %s", error)
        finally:
            with self._lock:
                del self._connections[connection]
                self._threads.discard(threading.current_thread())
            connection.close()

    def _admit(self, connection: socket.socket, channel: Channel) -> Runs | None:
        """The part of each block that the peer wants; None if it is not let in.

        It has heard nothing but the greeting before it has proved that it knows a token.
        """
        deadline = time.monotonic() + _HANDSHAKE_LIMIT_S
        channel.shake_hands(deadline)
        challenge = wire.new_challenge()
        send_bytes(channel, wire.pack_greeting(challenge), deadline)
        proof = receive_bytes(channel, wire.PROOF_BYTES, deadline)
        found = self._recognize(connection, challenge, proof)
        if found is None:
            return None
        challenges, token = found
        count = wire.read_part_header(receive_bytes(channel, wire.PART_HEADER_BYTES, deadline))
        part = receive_bytes(channel, count * wire.RUN_BYTES, deadline)
        runs = wire.read_part(part, self._pool.shape[1])
        send_bytes(channel, challenges.probe(token, int(runs[:, 1].sum())), deadline)
        return runs

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

    def _answer(self, channel: Channel, runs: Runs) -> None:
        """One request. Raises ``OSError`` at the end of the connection, whatever ended it."""
        deadline = time.monotonic() + _ANSWER_LIMIT_S
        count, number = wire.read_request_header(
            receive_bytes(channel, wire.HEADER_BYTES, deadline)
        )
        pieces = wire.read_pieces(receive_bytes(channel, count * wire.PIECE_BYTES, deadline))
        present = wire.find_present(pieces, self._generations)
        parts = over_parts(self._pool, pieces["block_id"][present], runs)
        channel.send(over(wire.pack_answer(number, present)) + parts, deadline)
