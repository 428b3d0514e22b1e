"""Connecting and whole messages over TCP, in few system calls and in bounded time.

Each return from the kernel has to get the interpreter lock back from the engine's thread, so one
call moves as many bytes as there are: many buffers at once, and the kernel waits until all are
full. Does not cover: what the bytes mean (``kv_transfer.tcp_wire``).
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

# IOV_MAX of Linux.
_MAX_BUFFERS = 1024
_TIMEVAL = struct.Struct("@ll")

# An address as sockets of its family take it.
SocketPlace = tuple[Any, ...]


def resolve(host: str, port: int) -> list[tuple[int, SocketPlace]]:
    """Families and addresses that ``host`` stands for, never none. Raises ``OSError``."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]


def start_connecting(connection: socket.socket, place: SocketPlace) -> None:
    """Returns at once; `wait_connected` tells how it went. Raises ``OSError`` if it failed."""
    connection.setblocking(False)
    code = connection.connect_ex(place)
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))


def wait_connected(connection: socket.socket, deadline: float) -> None:
    """Ends early if another thread shuts the connection down. Raises as `receive_into`."""
    waiting = select.poll()
    waiting.register(connection, select.POLLOUT)
    if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("nobody answered in time")
    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def prepare(connection: socket.socket) -> None:
    """Options of a connection that carries blocks.

    Buffer sizes are left to the kernel, which lets them grow further than we may ask for.
    """
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def wait_readable(connection: socket.socket) -> None:
    """Returns when there is something to read or the connection ended; waits without limit."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    waiting.poll()


def receive(connection: socket.socket, size: int, deadline: float) -> bytearray:
    """Exactly ``size`` bytes. Raises as `receive_into`."""
    data = bytearray(size)
    receive_into(connection, [memoryview(data)], deadline)
    return data


def receive_into(connection: socket.socket, buffers: Sequence[memoryview], deadline: float) -> None:
    """Fills all ``buffers`` (of bytes, writable).

    ``deadline`` is monotonic seconds. Raises ``TimeoutError``, or another ``OSError`` if the
    connection breaks or ends.
    """

    def move(part: list[memoryview], left_s: float) -> int:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(left_s))
        return connection.recvmsg_into(part, 0, socket.MSG_WAITALL)[0]

    _move_all(move, buffers, deadline)


def send(connection: socket.socket, buffers: Sequence[memoryview], deadline: float) -> None:
    """Sends all ``buffers`` (of bytes). Raises as `receive_into`."""

    def move(part: list[memoryview], left_s: float) -> int:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(left_s))
        return connection.sendmsg(part)

    _move_all(move, buffers, deadline)


def _timeval(seconds: float) -> bytes:
    """For the kernel's own timeouts: with Python's, calls would return after each segment."""
    # Zero would mean no limit at all.
    microseconds = max(1000, round(seconds * 1e6))
    return _TIMEVAL.pack(*divmod(microseconds, 1_000_000))


def _move_all(
    move: Callable[[list[memoryview], float], int],
    buffers: Sequence[memoryview],
    deadline: float,
) -> None:
    left = deque(buffer for buffer in buffers if buffer.nbytes)
    while left:
        left_s = deadline - time.monotonic()
        try:
            moved = move(list(itertools.islice(left, _MAX_BUFFERS)), left_s) if left_s > 0 else None
        except BlockingIOError:
            moved = None
        if moved is None:
            raise TimeoutError("the transfer did not end in time")
        if moved == 0:
            raise ConnectionError("the peer closed the connection")
        _drop(left, moved)


def _drop(buffers: deque[memoryview], size: int) -> None:
    """Removes the first ``size`` bytes."""
    while size:
        head = buffers.popleft()
        if head.nbytes > size:
            buffers.appendleft(head[size:])
            return
        size -= head.nbytes
