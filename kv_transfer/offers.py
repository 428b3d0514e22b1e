"""The ways to its pool that P offers to decode workers, one offer per stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.shm import PoolExporter
from kv_transfer.tcp_server import TcpServer
from kv_transfer.transport import SHM, TCP, HostPool


@dataclass(frozen=True, slots=True)
class Offer:
    """What one decode worker is offered; None: not this transport."""

    shm: pb.ShmOffer | None = None
    tcp: pb.TcpOffer | None = None

    @property
    def transports(self) -> list[str]:
        return [name for name, way in ((SHM, self.shm), (TCP, self.tcp)) if way is not None]


class PoolOffers:
    """Exports ``pool`` over each of ``transports``. TCP listens on ``host``, any free port."""

    def __init__(self, pool: HostPool, transports: Sequence[str], host: str) -> None:
        self._pool = pool
        self._host = host
        self._shm = PoolExporter(pool.fd) if SHM in transports else None
        self._tcp = TcpServer(host, pool.blocks, pool.generations) if TCP in transports else None

    def new_offer(self) -> Offer:
        """For one stream to one decode worker; `withdraw` it when the stream has ended."""
        offer = Offer()
        if self._shm is not None:
            shm = pb.ShmOffer(
                socket_path=self._shm.socket_path,
                nonce=self._pool.nonce,
                num_blocks=len(self._pool.blocks),
            )
            offer = Offer(shm=shm)
        if self._tcp is not None:
            tcp = pb.TcpOffer(host=self._host, port=self._tcp.port, token=self._tcp.invite())
            offer = Offer(offer.shm, tcp)
        return offer

    def withdraw(self, offer: Offer) -> None:
        """Ends what was opened with this offer, as far as P can."""
        if self._tcp is not None and offer.tcp is not None:
            self._tcp.revoke(offer.tcp.token)

    def close(self) -> None:
        """Ends all threads and sockets; call before the pool's memory is given up."""
        if self._shm is not None:
            self._shm.close()
        if self._tcp is not None:
            self._tcp.close()
