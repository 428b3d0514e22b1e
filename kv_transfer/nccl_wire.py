"""The messages of an NCCL edge's control connection, byte by byte (little-endian).

Each is a header (kind, opening, number, count) and a body that these tell the size of. The
connection is our own, one for each edge, instead of a gRPC stream: a go-ahead per batch must not
queue behind other edges or pass through the leader's event loop. Both sides have shown that they
know the token of the offer before (``kv_transfer.token_listener``). Does not cover: sockets
(``kv_transfer.socket_io``).
"""

from __future__ import annotations

import struct

import numpy as np

from kernels.block_region import BlockRegion
from kv_transfer import nccl_events as ev

UNIQUE_ID_BYTES = 128
# Of one batch: what P is willing to read at once.
MAX_PIECES = 65_535

# As `kv_transfer.tcp_wire.find_present` takes them.
PIECE = np.dtype([("block_id", "<u4"), ("generation", "<u8")])

_HEADER = struct.Struct("<BxxxIII")
_OPEN = struct.Struct(f"<{UNIQUE_ID_BYTES}s4IQ")
HEADER_BYTES = _HEADER.size

_BARE = (ev.Close, ev.Joining, ev.Full, ev.CloseWanted)
# A message's kind is its place here.
_KINDS = (*_BARE, ev.Open, ev.Go, ev.Sent)


def pack(message: ev.FromDecode | ev.FromPrefill) -> bytes:
    kind = _KINDS.index(type(message))
    match message:
        case ev.Open(opening, unique_id, region, row_bytes):
            opened = _OPEN.pack(unique_id, *region.layers, *region.heads, row_bytes)
            return _HEADER.pack(kind, opening, 0, 0) + opened
        case ev.Go(opening, number, pieces):
            body = np.array(list(pieces), PIECE).tobytes()
            return _HEADER.pack(kind, opening, number, len(pieces)) + body
        case ev.Sent(opening, number, present):
            return _HEADER.pack(kind, opening, number, len(present)) + bytes(present)
        case _:
            return _HEADER.pack(kind, message.opening, 0, 0)


def body_bytes(header: bytes | bytearray) -> int:
    """Bytes that follow this header. Raises ``ConnectionError`` for what nobody would send."""
    kind, _, _, count = _HEADER.unpack(header)
    if kind >= len(_KINDS) or count > MAX_PIECES:
        raise ConnectionError(f"a message of kind {kind} with {count} rows")
    if _KINDS[kind] is ev.Open:
        return _OPEN.size
    row_bytes = {ev.Go: PIECE.itemsize, ev.Sent: 1}.get(_KINDS[kind], 0)
    return int(count) * row_bytes


def unpack(header: bytes | bytearray, body: bytes | bytearray) -> ev.FromDecode | ev.FromPrefill:
    """The message; ``body`` has `body_bytes`. Raises ``ConnectionError`` as that does."""
    kind, opening, number, _ = _HEADER.unpack(header)
    match _KINDS[kind].__name__:
        case "Open":
            unique_id, *ends, row_bytes = _OPEN.unpack(body)
            region = BlockRegion((ends[0], ends[1]), (ends[2], ends[3]))
            return ev.Open(opening, unique_id, region, row_bytes)
        case "Go":
            return ev.Go(opening, number, tuple(np.frombuffer(body, PIECE).tolist()))
        case "Sent":
            if max(body, default=0) > 1:
                raise ConnectionError("a flag that is neither 0 nor 1")
            return ev.Sent(opening, number, tuple(flag == 1 for flag in body))
        case _:
            return _BARE[kind](opening)
