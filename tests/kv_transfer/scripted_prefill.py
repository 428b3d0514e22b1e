"""A prefill worker's TCP side that misbehaves on purpose: stops, closes, or is somebody else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from equal_edge import announced

from core.lease_events import PieceCopy
from kv_transfer import tcp_wire as wire
from kv_transfer.socket_io import receive
from kv_transfer.token_listener import TokenAddress

HOST = "127.0.0.1"
BLOCK_BYTES = 5000


@dataclass
class ScriptedPrefill:
    """Plays one script after the other, one per connection."""

    scripts: list[Callable[[socket.socket], None]]
    token: bytes = b"t" * wire.TOKEN_BYTES
    listener: socket.socket = field(default_factory=lambda: socket.create_server((HOST, 0)))

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.play)
        self.thread.start()

    @property
    def address(self) -> TokenAddress:
        return TokenAddress(HOST, self.listener.getsockname()[1], self.token)

    def play(self) -> None:
        for script in self.scripts:
            connection, _ = self.listener.accept()
            with connection, contextlib.suppress(OSError):
                script(connection)

    def close(self) -> None:
        self.thread.join()
        self.listener.close()


def introduce(connection: socket.socket) -> None:
    """P's part of the handshake."""
    challenge = wire.new_challenge()
    connection.sendall(wire.pack_greeting(challenge))
    proof = receive(connection, wire.PROOF_BYTES, time.monotonic() + 60)
    found = wire.Challenges.read_proof(challenge, proof, [b"t" * wire.TOKEN_BYTES])
    assert found is not None
    challenges, token = found
    header = receive(connection, wire.PART_HEADER_BYTES, time.monotonic() + 60)
    part = receive(
        connection, wire.read_part_header(header) * wire.RUN_BYTES, time.monotonic() + 60
    )
    runs = wire.read_part(part, BLOCK_BYTES)
    connection.sendall(challenges.probe(token, int(runs[:, 1].sum())))


def read_request(connection: socket.socket) -> int:
    header = receive(connection, wire.HEADER_BYTES, time.monotonic() + 60)
    count, number = wire.read_request_header(header)
    receive(connection, count * wire.PIECE_BYTES, time.monotonic() + 60)
    return number


ONES = np.ones(BLOCK_BYTES, np.uint8)
(ONES_PIECE,) = announced(ONES.reshape(1, -1), [0], [0])
TWO_COPIES = [PieceCopy(4, ONES_PIECE, 0), PieceCopy(5, ONES_PIECE, 1)]


def answer_and_stop(connection: socket.socket, stopped: threading.Event) -> None:
    """One block and a half, then nothing until ``stopped``; then the rest, too late."""
    introduce(connection)
    number = read_request(connection)
    connection.sendall(wire.pack_answer(number, np.array([True, True])))
    connection.sendall(ONES.tobytes() + ONES.tobytes()[:1000])
    stopped.wait()
    connection.sendall(ONES.tobytes()[1000:])


def answer_all(connection: socket.socket) -> None:
    introduce(connection)
    number = read_request(connection)
    connection.sendall(wire.pack_answer(number, np.array([True, True])))
    connection.sendall(ONES.tobytes() * 2)
    connection.recv(1)


def answer_one_request(connection: socket.socket) -> None:
    introduce(connection)
    number = read_request(connection)
    connection.sendall(wire.pack_answer(number, np.array([True])) + ONES.tobytes())
    read_request(connection)


def say_nothing(connection: socket.socket) -> None:
    connection.recv(1)


def close_after_request(connection: socket.socket) -> None:
    introduce(connection)
    read_request(connection)


def say_garbage(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    connection.recv(1)


def know_no_token(connection: socket.socket) -> None:
    connection.sendall(wire.pack_greeting(wire.new_challenge()))
    receive(connection, wire.PROOF_BYTES, time.monotonic() + 60)
    connection.sendall(bytes(BLOCK_BYTES))


def close_at_once(connection: socket.socket) -> None:
    del connection
