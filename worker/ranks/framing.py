"""Messages as frames of a byte stream: a length (uint32, little-endian), then that many bytes.

Pure: bytes in, frames out. Does not cover: sockets (``worker.ranks.connection``).
"""

from __future__ import annotations

import struct

from core.errors import InternalError

# A step of a million tokens fits; a stranger's bytes read as a length hardly ever do.
MAX_FRAME_BYTES = 64 << 20

_LENGTH = struct.Struct("<I")


def pack_frame(body: bytes) -> bytes:
    if len(body) > MAX_FRAME_BYTES:
        raise InternalError(
            f"a message of {len(body):,} bytes to a rank: at most {MAX_FRAME_BYTES:,} are allowed",
            reason="RANK_MESSAGE_TOO_LARGE",
            metadata={"bytes": str(len(body))},
        )
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Collects what arrives, however it was cut, and gives out whole frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete now. Raises ``ConnectionError`` for one that is too long."""
        self._data += data
        frames: list[bytes] = []
        start = 0
        while (end := self._end_of_frame(start)) <= len(self._data):
            frames.append(bytes(self._data[start + _LENGTH.size : end]))
            start = end
        del self._data[:start]
        return frames

    def _end_of_frame(self, start: int) -> int:
        """Where the frame that begins at ``start`` ends, as far as that is known."""
        if len(self._data) - start < _LENGTH.size:
            return start + _LENGTH.size
        (length,) = _LENGTH.unpack_from(self._data, start)
        if length > MAX_FRAME_BYTES:
            raise ConnectionError(f"a frame of {length:,} bytes: at most {MAX_FRAME_BYTES:,}")
        return start + _LENGTH.size + int(length)
