"""Connecting and whole messages over TCP, in few system calls and in bounded time.

Each return from the kernel has to get the interpreter lock back from the engine's thread, so one
call moves as many bytes as there are: many buffers at once, and the kernel waits until all are
full. Does not cover: what the bytes mean (``kv_transfer.tcp_wire``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from kv_transfer.iovecs import (
    Buffers,
    Iovecs,
    over,
    receive_once,
    send_once,
    without_first,
)

# Enough that neither side waits for the other at each turn, and still in the cache.
_LOCAL_BUFFER_BYTES = 1 << 20
# Always there, whatever the system's default is.
_LOCAL_CONGESTION_CONTROL = b"reno"
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

    Between hosts, buffer sizes are left to the kernel, which lets them grow further than we may ask
    for. Within a host there is no delay to fill, and no link to find out about: BBR, where it is
    the default, would estimate one and hold back to that.
    """
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if connection.getpeername()[0] == connection.getsockname()[0]:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_BUFFER_BYTES)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOCAL_BUFFER_BYTES)
        with contextlib.suppress(OSError):
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LOCAL_CONGESTION_CONTROL
            )


def wait_readable(connection: socket.socket) -> None:
    """Returns when there is something to read or the connection ended; waits without limit."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    waiting.poll()


def wake(connection: socket.socket) -> None:
    """Whoever waits in a call on this socket gets an error or the end of the stream."""
    with contextlib.suppress(OSError):
        # Not a TLS socket's own method, which is not for other threads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def receive(connection: socket.socket, size: int, deadline: float) -> bytearray:
    """Exactly ``size`` bytes. Raises as `receive_into`."""
    data = bytearray(size)
    receive_into(connection, over(data), deadline)
    return data


def receive_into(connection: socket.socket, buffers: Buffers, deadline: float) -> None:
    """Fills all ``buffers``.

    ``deadline`` is monotonic seconds. Raises ``TimeoutError``, or another ``OSError`` if the
    connection breaks or ends.
    """
    _move_all(receive_once, socket.SO_RCVTIMEO, connection, buffers, deadline)


def send(connection: socket.socket, buffers: Buffers, deadline: float) -> None:
    """Sends all ``buffers``. Raises as `receive_into`."""
    _move_all(send_once, socket.SO_SNDTIMEO, connection, buffers, deadline)


def time_left(deadline: float) -> float:
    """Seconds. Raises ``TimeoutError`` if there are none."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the transfer did not end in time")
    return left_s


def _move_all(
    move: Callable[[socket.socket, Iovecs], int],
    time_limit: int,
    connection: socket.socket,
    buffers: Buffers,
    deadline: float,
) -> None:
    left = buffers.iovecs
    size = int(left[:, 1].sum())
    while size:
        limit = _timeval(time_left(deadline))
        # The kernel's own limit: with Python's, calls would return after each segment.
        connection.setsockopt(socket.SOL_SOCKET, time_limit, limit)
        try:
            moved = move(connection, left)
        except InterruptedError:
            continue
        except BlockingIOError:
            raise TimeoutError("the transfer did not end in time") from None
        if moved == 0:
            raise ConnectionError("the peer closed the connection")
        size -= moved
        if size:
            left = without_first(left, moved)


def _timeval(seconds: float) -> bytes:
    # Zero would mean no limit at all.
    microseconds = max(1000, round(seconds * 1e6))
    return _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
