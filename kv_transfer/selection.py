"""Which transport an edge takes: the fastest that both sides allow and that passes its self-test.

Whether two workers share a host is never asked (containers and network namespaces give wrong
answers): each way is tried. Does not cover: the ways themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.errors import Incompatible
from core.kv_pool_layout import PoolLayout
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.shm import SharedMemorySource
from kv_transfer.tcp_source import TcpAddress, TcpSource
from kv_transfer.transport import SHM, TCP, PieceSource, PoolBytes


@dataclass(frozen=True, slots=True)
class Chosen:
    """``detail`` says why no faster transport was taken; "" if the fastest one was."""

    source: PieceSource
    detail: str


def open_source(hello: pb.Hello, allowed: Sequence[str], destination: PoolBytes) -> Chosen:
    """Tries the ``allowed`` transports that P offers, in this order; takes seconds at worst.

    ``destination``: D's pool. Raises `Incompatible`, with the reason of each, if none works.
    """
    failed: list[str] = []
    for name in allowed:
        if name not in hello.transports:
            failed.append(f"{name}: not offered by {hello.worker}")
            continue
        try:
            return Chosen(_OPENERS[name](hello, destination), "; ".join(failed))
        except (Incompatible, OSError) as error:
            failed.append(f"{name}: {error.message if isinstance(error, Incompatible) else error}")
    raise Incompatible(
        f"no KV transport from {hello.worker} works: {'; '.join(failed)} "
        f"(offered: {', '.join(hello.transports)})",
        reason="NO_COMMON_TRANSPORT",
    )


def _open_shm(hello: pb.Hello, destination: PoolBytes) -> PieceSource:
    layout = PoolLayout(hello.shm.num_blocks, destination.shape[1])
    return SharedMemorySource(hello.shm.socket_path, hello.shm.nonce, layout, destination)


def _open_tcp(hello: pb.Hello, destination: PoolBytes) -> PieceSource:
    address = TcpAddress(hello.tcp.host, hello.tcp.port, hello.tcp.token)
    return TcpSource(address, destination)


_OPENERS: Mapping[str, Callable[[pb.Hello, PoolBytes], PieceSource]] = {
    SHM: _open_shm,
    TCP: _open_tcp,
}
