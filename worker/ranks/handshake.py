"""How a rank and its leader show each other that they belong together, byte by byte.

    leader → rank  Greeting  magic, version, the leader's challenge
    rank → leader  Proof     the rank's challenge, HMAC that shows that the rank knows the token
    leader → rank  Proof     HMAC that shows that the leader knows it too

The token never travels here; a stranger hears the greeting, which is the same for everybody but
for 16 random bytes. This and what follows is encrypted only if the cluster has certificates
(``worker.ranks.tls_connection``).
"""

from __future__ import annotations

import hmac
import secrets
import struct
import time

from worker.ranks.tls_connection import RankSocket

TOKEN_BYTES = 16

_MAGIC = b"XDOCK-RK"
_VERSION = 1
_CHALLENGE_BYTES = 16
_GREETING = struct.Struct(f"<8sH6x{_CHALLENGE_BYTES}s")
_RANK_PROOF = struct.Struct(f"<{_CHALLENGE_BYTES}s32s")
_LEADER_PROOF = struct.Struct("<32s")


def admit(connection: RankSocket, token: bytes, deadline: float) -> None:
    """The leader's part. ``deadline``: monotonic seconds. Raises ``OSError`` for strangers."""
    leader = secrets.token_bytes(_CHALLENGE_BYTES)
    _send(connection, _GREETING.pack(_MAGIC, _VERSION, leader), deadline)
    rank, proof = _RANK_PROOF.unpack(_receive(connection, _RANK_PROOF.size, deadline))
    if not hmac.compare_digest(_sign(token, b"rank", leader, rank), proof):
        raise ConnectionError("whoever connected does not know the token")
    _send(connection, _LEADER_PROOF.pack(_sign(token, b"leader", leader, rank)), deadline)


def introduce(connection: RankSocket, token: bytes, deadline: float) -> None:
    """The rank's part. Raises ``OSError`` if it is not our leader who listens there."""
    greeting = _receive(connection, _GREETING.size, deadline)
    magic, version, leader = _GREETING.unpack(greeting)
    if magic != _MAGIC:
        raise ConnectionError("what answers there is not the leading rank of a replica")
    if version != _VERSION:
        raise ConnectionError(f"the leading rank speaks version {version}, we speak {_VERSION}")
    rank = secrets.token_bytes(_CHALLENGE_BYTES)
    _send(connection, _RANK_PROOF.pack(rank, _sign(token, b"rank", leader, rank)), deadline)
    (answer,) = _LEADER_PROOF.unpack(_receive(connection, _LEADER_PROOF.size, deadline))
    if not hmac.compare_digest(_sign(token, b"leader", leader, rank), answer):
        raise ConnectionError("the leading rank does not know the token")


def _sign(token: bytes, who: bytes, leader: bytes, rank: bytes) -> bytes:
    return hmac.digest(token, who + leader + rank, "sha256")


def _send(connection: RankSocket, data: bytes, deadline: float) -> None:
    _limit(connection, deadline)
    connection.sendall(data)


def _receive(connection: RankSocket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        _limit(connection, deadline)
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the peer closed the connection")
        data += part
    return data


def _limit(connection: RankSocket, deadline: float) -> None:
    """Bounds the next call on the connection."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    connection.settimeout(left_s)
