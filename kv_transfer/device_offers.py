"""The ways to its pool on a GPU that one rank of P offers, one offer per stream.

Loaded only where a pool lies on a GPU. Does not cover: pools in host memory
(``kv_transfer.offers``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from core.errors import Incompatible
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.communicator_room import ROOM
from kv_transfer.cuda_ipc import IpcExporter
from kv_transfer.cuda_memory import CudaIpcMemory, ExportedMemory
from kv_transfer.device import DevicePool
from kv_transfer.nccl_communicator import CupyNccl
from kv_transfer.nccl_server import NcclServer
from kv_transfer.transport import CUDA_IPC, NCCL

_log = logging.getLogger(__name__)


class DeviceOffers:
    """Exports ``pool`` over each of ``transports`` that this machine can. NCCL's control
    connections are taken on ``host``, any free port."""

    def __init__(self, pool: DevicePool, transports: Sequence[str], host: str) -> None:
        self._host = host
        self._ipc = _try_ipc(pool) if CUDA_IPC in transports else None
        self._nccl = _try_nccl(pool, host) if NCCL in transports else None
        self._tokens: dict[str, bytes] = {}

    def new_offer(self, stream: str) -> pb.RankOffer:
        """For one stream to one decode worker; `withdraw` it when the stream has ended."""
        offer = pb.RankOffer()
        if self._ipc is not None:
            offer.transports.append(CUDA_IPC)
            address = self._ipc.address
            offer.cuda_ipc.CopyFrom(
                pb.CudaIpcOffer(
                    socket_path=address.socket_path,
                    nonce=address.nonce,
                    num_blocks=address.num_blocks,
                    pool=_to_wire(address.pool),
                    probe=_to_wire(address.probe),
                )
            )
        if self._nccl is not None:
            self._tokens[stream] = self._nccl.invite()
            offer.transports.append(NCCL)
            offer.nccl.host = self._host
            offer.nccl.port = self._nccl.port
            offer.nccl.token = self._tokens[stream]
        return offer

    def withdraw(self, stream: str) -> None:
        """Ends what was opened with this stream's offer, as far as P can."""
        token = self._tokens.pop(stream, None)
        if self._nccl is not None and token is not None:
            self._nccl.revoke(token)

    def close(self) -> None:
        """Ends all threads and sockets; call before the pool's memory is given up."""
        if self._ipc is not None:
            self._ipc.close()
        if self._nccl is not None:
            self._nccl.close()


def _try_ipc(pool: DevicePool) -> IpcExporter | None:
    """Containers and drivers may forbid it; there is NCCL then."""
    try:
        return IpcExporter(pool, CudaIpcMemory())
    except (Incompatible, RuntimeError) as error:
        _log.warning("CUDA IPC is not offered: %s", error)
        return None


def _try_nccl(pool: DevicePool, host: str) -> NcclServer | None:
    try:
        return NcclServer(host, pool, CupyNccl(pool.tensor.device.index), ROOM)
    except Incompatible as error:
        _log.warning("NCCL is not offered: %s", error)
        return None


def _to_wire(memory: ExportedMemory) -> pb.CudaMemory:
    return pb.CudaMemory(handle=memory.handle, offset=memory.offset, size=memory.size)
