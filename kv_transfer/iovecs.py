"""Stretches of memory that one system call sends from or receives into, as one array.

Python's own calls take an object for each stretch; with the thousands of runs that parts of blocks
have, making and reading those costs as much as moving the bytes. Does not cover: sockets.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.transfer_plan import Runs
from kv_transfer.regions import PoolBytes

# uint64 [n, 2]: address and length in bytes, as ``struct iovec`` of a 64-bit machine.
Iovecs = npt.NDArray[np.uint64]
# IOV_MAX of Linux.
MAX_IOVECS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """``owners`` keep the memory at these addresses alive."""

    iovecs: Iovecs
    owners: tuple[object, ...]

    def __add__(self, other: Buffers) -> Buffers:
        return Buffers(np.concatenate([self.iovecs, other.iovecs]), self.owners + other.owners)

    def __getitem__(self, stretches: slice | npt.NDArray[np.bool_]) -> Buffers:
        return Buffers(self.iovecs[stretches], self.owners)

    def views(self) -> Iterator[memoryview]:
        """Each stretch, for calls that take no iovecs. Writable whatever the memory is."""
        for address, length in self.iovecs.tolist():
            yield memoryview((ctypes.c_char * length).from_address(address)).cast("B")


def over(data: bytes | bytearray) -> Buffers:
    """All bytes of ``data``."""
    array = np.frombuffer(data, np.uint8)
    return Buffers(np.array([[_address(array), len(array)]], np.uint64), (array,))


def over_parts(pool: PoolBytes, ids: npt.NDArray[np.integer], runs: Runs) -> Buffers:
    """These runs of these blocks, in order: ``len(runs)`` stretches for each block.

    Raises ``ValueError`` if anything lies outside the pool.
    """
    num_blocks, block_bytes = pool.shape
    if not pool.flags.c_contiguous:
        raise ValueError("the pool must be contiguous")
    if len(ids) and not (ids.min() >= 0 and ids.max() < num_blocks):
        raise ValueError(f"a block outside a pool of {num_blocks}")
    if (runs[:, 0] < 0).any() or (runs.sum(axis=1) > block_bytes).any():
        raise ValueError(f"a run outside a block of {block_bytes} bytes")
    iovecs = np.empty((len(ids), len(runs), 2), np.uint64)
    iovecs[..., 0] = _address(pool) + ids.astype(np.int64)[:, None] * block_bytes + runs[:, 0]
    iovecs[..., 1] = runs[:, 1]
    return Buffers(iovecs.reshape(-1, 2), (pool,))


def without_first(iovecs: Iovecs, size: int) -> Iovecs:
    """What is left after the first ``size`` bytes."""
    ends = np.cumsum(iovecs[:, 1])
    whole = int(np.searchsorted(ends, size, side="right"))
    left = iovecs[whole:].copy()
    if len(left):
        into = size - (int(ends[whole - 1]) if whole else 0)
        left[0, 0] += np.uint64(into)
        left[0, 1] -= np.uint64(into)
    return left


def send_once(connection: socket.socket, iovecs: Iovecs) -> int:
    """One sendmsg(2) of at most `MAX_IOVECS` stretches. Bytes sent; raises ``OSError``."""
    return _call(_LIBC.sendmsg, connection, iovecs, socket.MSG_NOSIGNAL)


def receive_once(connection: socket.socket, iovecs: Iovecs) -> int:
    """One recvmsg(2) that waits until at most `MAX_IOVECS` stretches are full, or the end.

    Bytes received, 0 at the end of the stream; raises ``OSError``.
    """
    return _call(_LIBC.recvmsg, connection, iovecs, socket.MSG_WAITALL)


class _MessageHeader(ctypes.Structure):
    """``struct msghdr`` of Linux."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iovecs", ctypes.c_void_p),
        ("iovec_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


# The interpreter lock is not held during calls into it.
_LIBC = ctypes.CDLL(None, use_errno=True)
for _function in (_LIBC.sendmsg, _LIBC.recvmsg):
    _function.argtypes = (ctypes.c_int, ctypes.POINTER(_MessageHeader), ctypes.c_int)
    _function.restype = ctypes.c_ssize_t


def _call(
    function: ctypes._NamedFuncPointer, connection: socket.socket, iovecs: Iovecs, flags: int
) -> int:
    count = min(len(iovecs), MAX_IOVECS)
    header = _MessageHeader(iovecs=_address(iovecs), iovec_count=count)
    moved: int = function(connection.fileno(), ctypes.byref(header), flags)
    if moved < 0:
        code = ctypes.get_errno()
        # OSError picks the class that fits the code.
        raise OSError(code, os.strerror(code))
    return moved


def _address(array: npt.NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])
