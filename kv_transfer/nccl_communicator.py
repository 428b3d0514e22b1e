"""NCCL communicators of two ranks, as ``cupy.cuda.nccl`` makes them.

P is rank 0, D is rank 1. Everything is sent as bytes (uint8), so that fp8 takes the same way as any
other dtype. Does not cover: when to send what (``kv_transfer.nccl_edge``).
"""

from __future__ import annotations

import importlib
from typing import Protocol

from core.errors import Incompatible

PREFILL_RANK = 0
DECODE_RANK = 1
WORLD = 2
# ncclUint8 in nccl.h.
UINT8 = 1


class Communicator(Protocol):
    """The part of `cupy.cuda.nccl.NcclCommunicator` that is used; addresses and streams are ints.

    ``abort`` may be called while another thread is in ``send`` or ``recv``, and both may hang.
    """

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None: ...
    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None: ...
    def check_async_error(self) -> None: ...
    def abort(self) -> None: ...
    def destroy(self) -> None: ...


class Nccl(Protocol):
    """The library."""

    def new_unique_id(self) -> bytes:
        """128 bytes that both ranks need, once."""

    def join(self, unique_id: bytes, rank: int) -> Communicator:
        """Blocks until the other rank joins, too, for ever if it does not."""


class CupyNccl:
    """The real one, for one CUDA device. Raises `Incompatible` if cupy or NCCL is not installed."""

    def __init__(self, device_index: int) -> None:
        try:
            self._cuda = importlib.import_module("cupy.cuda")
            self._nccl = importlib.import_module("cupy.cuda.nccl")
        except ImportError as error:
            raise _not_installed(str(error)) from error
        if not self._nccl.available:
            raise _not_installed("cupy found no NCCL library")
        self._index = device_index

    def new_unique_id(self) -> bytes:
        unique_id: bytes = self._nccl.get_unique_id()
        return unique_id

    def join(self, unique_id: bytes, rank: int) -> Communicator:
        self._cuda.Device(self._index).use()
        communicator: Communicator = self._nccl.NcclCommunicator(WORLD, unique_id, rank)
        return communicator


def _not_installed(why: str) -> Incompatible:
    return Incompatible(
        f"NCCL can't be used: {why}; install crossdock[gpu]", reason="NCCL_NOT_INSTALLED"
    )
