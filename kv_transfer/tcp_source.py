"""D's side of KV blocks over TCP: one edge, over one connection or several.

Covers: dealing the pieces of a copy out to the connections. One connection is best within a host,
where it already takes a core on each side; between hosts several may fill a link that one can't.
Does not cover: a connection (``kv_transfer.tcp_stream``), P's side (``kv_transfer.tcp_server``).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from core.errors import Incompatible
from core.lease_events import PieceCopy
from core.tls_files import TlsFiles
from kv_transfer.socket_io import resolve
from kv_transfer.tcp_stream import CONNECT_LIMIT_S, TcpStream
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import TCP, CopyResult, EdgeTarget

# A copy ends long before a lease does (20 s without a sign of life on P, by default).
COPY_LIMIT_S = 10.0


class TcpSource:
    """The pool of one rank of P behind TCP connections, each opened again if it breaks."""

    transport = TCP

    def __init__(
        self,
        address: TokenAddress,
        target: EdgeTarget,
        limit_s: float = COPY_LIMIT_S,
        streams: int = 1,
        tls: TlsFiles | None = None,
    ) -> None:
        """Connects and tests the way. Raises `Incompatible` if it does not work.

        ``limit_s``: how long one copy may take, in seconds, connecting again included.
        ``streams``: connections that share the pieces of a copy. ``tls``: None is in the clear.
        """
        self._limit_s = limit_s
        # Resolved once: no deadline bounds that, and one life of P stays where it is.
        try:
            places = resolve(address.host, address.port)
        except OSError as error:
            raise Incompatible(
                f"{address} can't be reached: {error}", reason="TCP_UNREACHABLE"
            ) from error
        self._streams = [TcpStream(address, places, target, tls) for _ in range(streams)]
        self._helpers = ThreadPoolExecutor(max(1, streams - 1), thread_name_prefix="kv-tcp")
        with self._closed_on_failure():
            deadline = time.monotonic() + CONNECT_LIMIT_S
            for stream in self._streams:
                stream.connect(deadline)

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """As in `PieceSource`. A broken connection costs the pieces that had not landed on it."""
        deadline = time.monotonic() + self._limit_s
        size = -(-len(copies) // len(self._streams))
        landed = self._run(
            [
                functools.partial(stream.fetch, copies[i * size : (i + 1) * size], deadline)
                for i, stream in enumerate(self._streams)
            ]
        )
        good = tuple(item.index for item in copies if item.index in landed)
        bad = tuple(item.index for item in copies if item.index not in landed)
        return CopyResult(good, bad)

    def abort(self) -> None:
        for stream in self._streams:
            stream.abort()

    def close(self) -> None:
        self.abort()
        self._helpers.shutdown(wait=True)
        for stream in self._streams:
            stream.close()

    def _run(self, fetches: Sequence[Callable[[], set[int]]]) -> set[int]:
        """The first in this thread, the others beside it; returns or raises when all ended."""
        helping = [self._helpers.submit(fetch) for fetch in fetches[1:]]
        try:
            landed = fetches[0]()
        finally:
            wait(helping)
        return landed.union(*(helper.result() for helper in helping))

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise
