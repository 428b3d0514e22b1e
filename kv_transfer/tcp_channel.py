"""A TCP connection that carries whole messages and parts of blocks, in the clear or over TLS.

In the clear the kernel moves bytes straight from P's pool and into D's. TLS makes other bytes of
them first, so scattered runs are gathered before and spread afterwards.
Does not cover: connecting (``kv_transfer.tcp_stream``), what the bytes mean.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Protocol

from kv_transfer import socket_io
from kv_transfer.iovecs import Buffers, over

# What is encrypted by one call: OpenSSL makes records of 16 KiB of it.
_TLS_BATCH_BYTES = 256 << 10


class Channel(Protocol):
    """One end. Used by one thread. All raise ``OSError``, ``TimeoutError`` at the deadline."""

    def shake_hands(self, deadline: float) -> None:
        """Before anything else; ``deadline`` is monotonic seconds."""

    def send(self, buffers: Buffers, deadline: float) -> None:
        """Sends all of them."""

    def receive_into(self, buffers: Buffers, deadline: float) -> None:
        """Fills all of them."""

    def wait_readable(self) -> None:
        """Returns when there is something to read or the connection ended."""


def channel_over(connection: socket.socket) -> Channel:
    """The channel that fits the socket, which has to be connected and `prepare`d."""
    return TlsChannel(connection) if isinstance(connection, ssl.SSLSocket) else Plain(connection)


def send_bytes(channel: Channel, data: bytes, deadline: float) -> None:
    channel.send(over(data), deadline)


def receive_bytes(channel: Channel, size: int, deadline: float) -> bytearray:
    """Exactly ``size`` bytes."""
    data = bytearray(size)
    channel.receive_into(over(data), deadline)
    return data


class Plain:
    """In the clear."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def shake_hands(self, deadline: float) -> None:
        """There are no hands to shake."""

    def send(self, buffers: Buffers, deadline: float) -> None:
        socket_io.send(self._socket, buffers, deadline)

    def receive_into(self, buffers: Buffers, deadline: float) -> None:
        socket_io.receive_into(self._socket, buffers, deadline)

    def wait_readable(self) -> None:
        socket_io.wait_readable(self._socket)


class TlsChannel:
    """Encrypted. The time limits are Python's own: a TLS record may need several segments."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._socket = connection

    def shake_hands(self, deadline: float) -> None:
        self._socket.settimeout(socket_io.time_left(deadline))
        self._socket.do_handshake()

    def send(self, buffers: Buffers, deadline: float) -> None:
        for batch in _batches(buffers):
            left = memoryview(b"".join(batch))
            while left.nbytes:
                self._socket.settimeout(socket_io.time_left(deadline))
                left = left[self._socket.send(left) :]

    def receive_into(self, buffers: Buffers, deadline: float) -> None:
        for batch in _batches(buffers):
            data = memoryview(bytearray(sum(view.nbytes for view in batch)))
            self._fill(data, deadline)
            for view in batch:
                view[:] = data[: view.nbytes]
                data = data[view.nbytes :]

    def wait_readable(self) -> None:
        if not self._socket.pending():
            socket_io.wait_readable(self._socket)

    def _fill(self, data: memoryview, deadline: float) -> None:
        while data.nbytes:
            self._socket.settimeout(socket_io.time_left(deadline))
            received = self._socket.recv_into(data)
            if not received:
                raise ConnectionError("the peer closed the connection")
            data = data[received:]


def _batches(buffers: Buffers) -> Iterator[list[memoryview]]:
    """All stretches in order, at most `_TLS_BATCH_BYTES` at a time."""
    batch: list[memoryview] = []
    room = _TLS_BATCH_BYTES
    for view in buffers.views():
        left = view
        while left.nbytes:
            batch.append(left[:room])
            left = left[room:]
            room -= batch[-1].nbytes
            if not room:
                yield batch
                batch, room = [], _TLS_BATCH_BYTES
    if batch:
        yield batch
