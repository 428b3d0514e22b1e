"""Server-sent events, as far as OpenAI's streams use them: bytes in, data out.

Pure. Covers ``data`` lines, comments, LF and CRLF, any cut of the bytes. Does not cover event
names, ids and reconnecting, which those streams don't have.
"""

from __future__ import annotations

from core.errors import Unavailable
from tuner.load.records import MALFORMED_STREAM

MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventParser:
    """``feed`` takes bytes as they come and gives the data of every event that is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """Raises ``Unavailable`` for an event of more than ``MAX_EVENT_BYTES``."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise Unavailable("an event of the stream does not end", reason=MALFORMED_STREAM)
        return [data for line in lines if (data := self._line(line.removesuffix(b"\r")))]

    def _line(self, line: bytes) -> bytes:
        """The data of the event that an empty line ends, else b""."""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            return b""
        if line:
            return b""
        data, self._data = b"\n".join(self._data), []
        return data
