"""What P and D say to each other over TCP, byte by byte (little-endian), and who may speak.

    P → D  Greeting   magic, version, P's challenge
    D → P  Proof      D's challenge, HMAC that shows that D knows the token
    D → P  Part       count, count × (offset, length): the part of each block that D wants, in bytes
    P → D  Probe      as many bytes as the part has, which only a holder of the token can make: D's
                      self-test, which also finds a path that lets only small packets through
    D → P  Request    count, number, count × (block id, generation)
    P → D  Answer     count, number, count × flag, then the part of each block whose flag is 1, in
                      this order

Requests follow one another on the connection; each is answered before the next. Anything else is a
`ConnectionError` and ends the connection. Does not cover: sockets (``kv_transfer.socket_io``).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.lease_events import PieceCopy
from core.transfer_plan import Runs

TOKEN_BYTES = 16
# Of one request: what P is willing to read at once.
MAX_PIECES = 4096
# Of one part: two for each layer, where it holds only some heads.
MAX_RUNS = 4096

_MAGIC = b"XDOCK-KV"
_VERSION = 2
_CHALLENGE_BYTES = 16
_GREETING = struct.Struct(f"<8sH6x{_CHALLENGE_BYTES}s")
_PROOF = struct.Struct(f"<{_CHALLENGE_BYTES}s32s")
_HEADER = struct.Struct("<IQ")
_COUNT = struct.Struct("<I")
_RUN = np.dtype("<i8")
_PIECE = np.dtype([("block_id", "<u4"), ("generation", "<u8")])

GREETING_BYTES = _GREETING.size
PROOF_BYTES = _PROOF.size
PART_HEADER_BYTES = _COUNT.size
RUN_BYTES = 2 * _RUN.itemsize
HEADER_BYTES = _HEADER.size
PIECE_BYTES = _PIECE.itemsize

Pieces = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]


def new_challenge() -> bytes:
    return secrets.token_bytes(_CHALLENGE_BYTES)


def pack_greeting(challenge: bytes) -> bytes:
    return _GREETING.pack(_MAGIC, _VERSION, challenge)


def read_greeting(data: bytes | bytearray) -> bytes:
    """P's challenge."""
    magic, version, challenge = _GREETING.unpack(data)
    if magic != _MAGIC:
        raise ConnectionError("what answers there is not a prefill worker")
    if version != _VERSION:
        raise ConnectionError(f"the prefill worker speaks version {version}, we speak {_VERSION}")
    return bytes(challenge)


@dataclass(frozen=True, slots=True)
class Challenges:
    """Both sides' random bytes of one connection: what was proved on another is worth nothing."""

    prefill: bytes
    decode: bytes

    def pack_proof(self, token: bytes) -> bytes:
        return _PROOF.pack(self.decode, self._sign(token))

    @classmethod
    def read_proof(
        cls, prefill: bytes, data: bytes | bytearray, tokens: Sequence[bytes]
    ) -> tuple[Challenges, bytes] | None:
        """Both challenges and the token that D knows; None if it knows none of ``tokens``."""
        decode, signature = _PROOF.unpack(data)
        both = cls(prefill, decode)
        known = (t for t in tokens if hmac.compare_digest(both._sign(t), signature))
        token = next(known, None)
        return None if token is None else (both, token)

    def probe(self, token: bytes, size: int) -> bytes:
        """Keyed SHAKE-128, ``size`` bytes: a prefix key is safe with it."""
        message = b"probe" + token + self.prefill + self.decode
        return hashlib.shake_128(message).digest(size)

    def _sign(self, token: bytes) -> bytes:
        return hmac.digest(token, b"decode" + self.prefill + self.decode, "sha256")


def pack_part(runs: Runs) -> bytes:
    return _COUNT.pack(len(runs)) + runs.astype(_RUN).tobytes()


def read_part_header(data: bytes | bytearray) -> int:
    """How many runs follow."""
    (count,) = _COUNT.unpack(data)
    if not 1 <= count <= MAX_RUNS:
        raise ConnectionError(f"a part of {count} runs; 1 to {MAX_RUNS} are allowed")
    return int(count)


def read_part(data: bytes | bytearray, block_bytes: int) -> Runs:
    """The part of each block that D wants, of blocks of ``block_bytes``."""
    runs = np.frombuffer(data, _RUN).reshape(-1, 2).astype(np.int64)
    starts, lengths = runs[:, 0], runs[:, 1]
    # Each is bounded before any sum is made, so that none overflows.
    inside = (starts >= 0) & (starts < block_bytes) & (lengths >= 1) & (lengths <= block_bytes)
    if not inside.all():
        raise ConnectionError(f"a part that is not in a block of {block_bytes} bytes")
    ends = starts + lengths
    if ends[-1] > block_bytes or (ends[:-1] > starts[1:]).any():
        raise ConnectionError(
            f"a part whose runs overlap or leave the block of {block_bytes} bytes"
        )
    return runs


def pack_request(number: int, copies: Sequence[PieceCopy]) -> bytes:
    pieces = np.array([(c.piece.block_id, c.piece.generation) for c in copies], _PIECE)
    return _HEADER.pack(len(copies), number) + pieces.tobytes()


def read_request_header(data: bytes | bytearray) -> tuple[int, int]:
    """How many pieces follow, and the number of the request."""
    count, number = _HEADER.unpack(data)
    if not 1 <= count <= MAX_PIECES:
        raise ConnectionError(f"a request for {count} pieces; 1 to {MAX_PIECES} are allowed")
    return count, number


def read_pieces(data: bytes | bytearray) -> Pieces:
    return np.frombuffer(data, _PIECE)


def find_present(pieces: Pieces, generations: npt.NDArray[np.uint64]) -> Flags:
    """Which pieces P still has: bool [len(pieces)]. Ids outside the pool are not there."""
    inside = pieces["block_id"] < len(generations)
    ids = np.where(inside, pieces["block_id"], 0)
    present: Flags = inside & (generations[ids] == pieces["generation"])
    return present


def pack_answer(number: int, present: Flags) -> bytes:
    return _HEADER.pack(len(present), number) + present.tobytes()


def read_answer(data: bytes | bytearray, number: int, count: int) -> Flags:
    """Which of the ``count`` pieces of request ``number`` follow."""
    flags = np.frombuffer(data, np.uint8, offset=HEADER_BYTES)
    if _HEADER.unpack_from(data) != (count, number) or (flags > 1).any():
        raise ConnectionError("an answer that does not fit the request")
    return flags.astype(np.bool_)
