"""Messages of one stream that wait to be written. Those that wait together share one write.

A write through gRPC costs far more than a message: what is said at the same time (the last blocks
and the commit, an ack and what follows from it) travels as one frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from crossdock.v1 import handoff_pb2 as pb

# A frame takes more messages until it is as large as this: far below gRPC's limit, whatever the
# last one brings.
_FRAME_BYTES = 1 << 20

Message = TypeVar("Message")
Frame = TypeVar("Frame", pb.PrefillMessage, pb.DecodeMessage)


class Outbox(Generic[Message, Frame]):
    """Filled and emptied on one event loop. ``to_wire`` makes a frame of one message."""

    def __init__(self, to_wire: Callable[[Message], Frame]) -> None:
        self._to_wire: Callable[[Message], Frame] = to_wire
        # None ends the stream.
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue()

    def put(self, message: Message) -> None:
        self._waiting.put_nowait(message)

    def end(self) -> None:
        """What waits already is still to be written."""
        self._waiting.put_nowait(None)

    async def next_frame(self) -> Frame | None:
        """Waits for a message and takes what waits behind it; None after the end."""
        message = await self._waiting.get()
        if message is None:
            return None
        frame: Frame = self._to_wire(message)
        size = frame.ByteSize()
        while size < _FRAME_BYTES and not self._waiting.empty():
            message = self._waiting.get_nowait()
            if message is None:
                self.end()
                break
            more = self._to_wire(message)
            size += more.ByteSize()
            frame.more.append(more)
        return frame


def messages_of(frame: Frame) -> Sequence[Frame]:
    """All messages of a frame, in order. Raises ValueError for a frame that no outbox makes."""
    if any(message.more for message in frame.more):
        raise ValueError("a message within a frame has others in it")
    return [frame, *frame.more]
