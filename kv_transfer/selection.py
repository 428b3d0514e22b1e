"""Which transport an edge takes: the fastest that both sides allow and that passes its self-test.

Whether two workers share a host is never asked (containers and network namespaces give wrong
answers): each way is tried. Does not cover: the ways themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.errors import Incompatible
from core.kv_pool_layout import PoolLayout
from core.tcp_options import PLAIN_TCP, TcpOptions
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.communicator_room import ROOM
from kv_transfer.cuda_ipc import CudaIpcSource, IpcAddress
from kv_transfer.cuda_memory import CudaIpcMemory, ExportedMemory
from kv_transfer.device import DeviceTarget
from kv_transfer.nccl_communicator import CupyNccl
from kv_transfer.nccl_source import NcclSource
from kv_transfer.shm import SharedMemorySource
from kv_transfer.tcp_source import TcpSource
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import CUDA_IPC, NCCL, SHM, TCP, EdgeTarget, PieceSource


@dataclass(frozen=True, slots=True)
class Chosen:
    """``detail`` says why no faster transport was taken; "" if the fastest one was."""

    source: PieceSource
    detail: str


def open_source(
    offer: pb.RankOffer,
    allowed: Sequence[str],
    target: EdgeTarget | DeviceTarget,
    peer: str,
    tcp: TcpOptions = PLAIN_TCP,
) -> Chosen:
    """Tries the ``allowed`` transports that a rank of P offers, in this order; takes seconds at
    worst.

    ``peer``: P's name, for messages; ``tcp``: how TCP is taken. Raises
    `Incompatible`, with the reason of each, if none works.
    """
    failed: list[str] = []
    for name in allowed:
        if name not in offer.transports:
            failed.append(f"{name}: not offered by {peer}")
            continue
        try:
            return Chosen(_open(name, offer, target, tcp), "; ".join(failed))
        except (Incompatible, OSError) as error:
            failed.append(f"{name}: {error.message if isinstance(error, Incompatible) else error}")
    raise Incompatible(
        f"no KV transport from {peer} works: {'; '.join(failed)} "
        f"(offered: {', '.join(offer.transports)})",
        reason="NO_COMMON_TRANSPORT",
    )


def _open(
    name: str, offer: pb.RankOffer, target: EdgeTarget | DeviceTarget, tcp: TcpOptions
) -> PieceSource:
    if isinstance(target, DeviceTarget):
        if name in _DEVICE_OPENERS:
            return _DEVICE_OPENERS[name](offer, target)
    elif name == SHM:
        return _open_shm(offer, target)
    elif name == TCP:
        return _open_tcp(offer, target, tcp)
    where = "on a GPU" if isinstance(target, DeviceTarget) else "in host memory"
    raise Incompatible(f"the KV pool of this worker is {where}", reason="WRONG_MEMORY")


def _open_shm(offer: pb.RankOffer, target: EdgeTarget) -> PieceSource:
    layout = PoolLayout(offer.shm.num_blocks, target.plan.source_layout.block_bytes)
    return SharedMemorySource(offer.shm.socket_path, offer.shm.nonce, layout, target)


def _open_tcp(offer: pb.RankOffer, target: EdgeTarget, tcp: TcpOptions) -> PieceSource:
    # Each side would wait for the other's first word.
    if offer.tcp.tls and tcp.tls is None:
        raise _only_one_has_tls("takes only peers with TLS, and this worker has no certificate")
    if tcp.tls is not None and not offer.tcp.tls:
        raise _only_one_has_tls("offers TCP without TLS, and this worker takes it only with TLS")
    address = TokenAddress(offer.tcp.host, offer.tcp.port, offer.tcp.token)
    return TcpSource(address, target, streams=tcp.streams, tls=tcp.tls)


def _only_one_has_tls(what: str) -> Incompatible:
    return Incompatible(
        f"the peer {what}: start both with the setting tls, or both without", reason="TLS_DIFFERS"
    )


def _open_cuda_ipc(offer: pb.RankOffer, target: DeviceTarget) -> PieceSource:
    ipc = offer.cuda_ipc
    address = IpcAddress(
        ipc.socket_path, ipc.nonce, ipc.num_blocks, _from_wire(ipc.pool), _from_wire(ipc.probe)
    )
    return CudaIpcSource(address, target, CudaIpcMemory())


def _open_nccl(offer: pb.RankOffer, target: DeviceTarget) -> PieceSource:
    address = TokenAddress(offer.nccl.host, offer.nccl.port, offer.nccl.token)
    return NcclSource(address, target, CupyNccl(target.tensor.device.index), ROOM)


def _from_wire(memory: pb.CudaMemory) -> ExportedMemory:
    return ExportedMemory(memory.handle, memory.offset, memory.size)


_DEVICE_OPENERS: Mapping[str, Callable[[pb.RankOffer, DeviceTarget], PieceSource]] = {
    CUDA_IPC: _open_cuda_ipc,
    NCCL: _open_nccl,
}
