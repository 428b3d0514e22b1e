"""The ways to its pool that one rank of P offers to decode workers, one offer per stream."""

from __future__ import annotations

from collections.abc import Sequence

from core.tls_files import TlsFiles
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.shm import PoolExporter
from kv_transfer.tcp_server import TcpServer
from kv_transfer.transport import SHM, TCP, HostPool


class PoolOffers:
    """Exports ``pool`` over each of ``transports``. TCP listens on ``host``, any free port, and
    takes only peers with a certificate unless ``tls`` is None."""

    def __init__(
        self, pool: HostPool, transports: Sequence[str], host: str, tls: TlsFiles | None
    ) -> None:
        self._pool = pool
        self._host = host
        self._with_tls = tls is not None
        self._shm = PoolExporter(pool.fd) if SHM in transports else None
        self._tcp: TcpServer | None = None
        if TCP in transports:
            self._tcp = TcpServer(host, pool.blocks, pool.generations, tls)
        self._tcp_tokens: dict[str, bytes] = {}

    def new_offer(self, stream: str) -> pb.RankOffer:
        """For one stream to one decode worker; `withdraw` it when the stream has ended."""
        offer = pb.RankOffer()
        if self._shm is not None:
            offer.transports.append(SHM)
            offer.shm.socket_path = self._shm.socket_path
            offer.shm.nonce = self._pool.nonce
            offer.shm.num_blocks = len(self._pool.blocks)
        if self._tcp is not None:
            self._tcp_tokens[stream] = self._tcp.invite()
            offer.transports.append(TCP)
            offer.tcp.host = self._host
            offer.tcp.port = self._tcp.port
            offer.tcp.token = self._tcp_tokens[stream]
            offer.tcp.tls = self._with_tls
        return offer

    def withdraw(self, stream: str) -> None:
        """Ends what was opened with this stream's offer, as far as P can."""
        token = self._tcp_tokens.pop(stream, None)
        if self._tcp is not None and token is not None:
            self._tcp.revoke(token)

    def close(self) -> None:
        """Ends all threads and sockets; call before the pool's memory is given up."""
        if self._shm is not None:
            self._shm.close()
        if self._tcp is not None:
            self._tcp.close()
