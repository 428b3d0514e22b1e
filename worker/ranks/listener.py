"""Where the leading rank waits for the others: lets in who knows the token, and nobody else.

Covers: one listener, a short thread per newcomer for the handshake, limits on strangers.
Does not cover: what is said afterwards (``worker.ranks.connection``).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from core.tls_files import TlsFiles
from wire.tls_contexts import server_context
from worker.ranks.handshake import admit
from worker.ranks.tls_connection import RankSocket, secured_server

_log = logging.getLogger(__name__)
_HANDSHAKE_LIMIT_S = 5.0
_ACCEPT_PAUSE_S = 0.1
# Strangers who connect and say nothing must not use up threads.
_MAX_STRANGERS = 64


class RankListener:
    """Listens on ``host``, any free port; ``admitted`` gets each connection, on some thread."""

    def __init__(
        self,
        host: str,
        token: bytes,
        admitted: Callable[[RankSocket], None],
        tls: TlsFiles | None = None,
    ) -> None:
        """``tls``: take only members of the cluster; None: in the clear."""
        self._token = token
        self._tls = tls
        self._context = server_context(tls.as_server) if tls is not None else None
        self._admitted = admitted
        self._lock = threading.Lock()
        self._strangers: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="rank-accept", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Nobody is admitted any more; may be called twice, and by ``admitted``."""
        with self._lock:
            self._closing = True
            for connection in self._strangers:
                _wake(connection)
        # shutdown() wakes accept(), close() alone would not.
        _wake(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Out of descriptors, if it is not the end: ranks try again, and so do we.
                time.sleep(0 if self._closing else _ACCEPT_PAUSE_S)
                continue
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        with self._lock:
            if self._closing or len(self._strangers) >= _MAX_STRANGERS:
                connection.close()
                return
            thread = threading.Thread(
                target=self._shake_hands, args=(connection,), name="rank-admit", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                # Out of threads: only this one is turned away, later ones may find room.
                _log.warning("a connection can't be served: %s", error)
                connection.close()
            else:
                self._strangers[connection] = thread

    def _shake_hands(self, connection: socket.socket) -> None:
        try:
            secured = self._secure(connection, time.monotonic() + _HANDSHAKE_LIMIT_S)
        except OSError as error:
            _log.debug("a connection was not admitted: %s", error)
            self._forget(connection)
            connection.close()
            return
        if self._forget(connection):
            self._admitted(secured)
        else:
            connection.close()

    def _secure(self, connection: socket.socket, deadline: float) -> RankSocket:
        """Raises ``OSError`` for strangers."""
        secured: RankSocket = connection
        if self._tls is not None and self._context is not None:
            secured = secured_server(connection, self._context, self._tls.name, deadline)
        admit(secured, self._token, deadline)
        return secured

    def _forget(self, connection: socket.socket) -> bool:
        """Whether newcomers are still wanted."""
        with self._lock:
            del self._strangers[connection]
            return not self._closing


def _wake(connection: socket.socket) -> None:
    """Whoever waits in a call on this socket gets an error or the end of the stream."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
