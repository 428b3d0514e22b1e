"""One HTTP client that gets its answer as server-sent events, each at the moment when it comes.

Chunks go straight to the connection's transport, between the head of the response and its end,
which aiohttp writes: waking a task for each token would take longer than all the rest. What a slow
client has not read is kept there, at most its whole answer.
"""

from __future__ import annotations

import asyncio
from json.encoder import encode_basestring

from aiohttp import HttpVersion11, web

from router.doors.openai_answers import AnswerWriter
from router.requests.answer_stream import AnswerStream, ChoiceEvent, TokenSink, Write


class EventStream:
    """For `AnswerStream.feed`. The response to ``request`` must have begun, its head written.

    ``last``: what came last of the answer, for who writes it with the end of the response.
    """

    def __init__(self, request: web.Request, answer: AnswerStream, writer: AnswerWriter) -> None:
        self._answer = answer
        self._transport = request.transport
        self._writer = writer
        self._is_chunked = request.version >= HttpVersion11
        self.last = b""

    def choice(self, choice: int) -> TokenSink:
        around = self._writer.around_text(choice)
        if around is None or self._transport is None or not self._is_chunked:
            return _AnyTokens(self, self._writer, choice)
        return _ChunkedTexts(self._transport, *around)

    def event(self, item: ChoiceEvent) -> None:
        event = self._writer.parts([item])
        if not self._answer.goes_on:
            self.last += event
        elif (write := self.write(event)) is not None:
            transport, chunk = write
            transport.write(chunk)

    def write(self, event: bytes) -> Write | None:
        """``event`` as part of the body."""
        transport = self._transport
        # An empty chunk would be the end of the body. Who is gone is noticed by aiohttp.
        if not event or transport is None or transport.is_closing():
            return None
        return transport, _chunk(event) if self._is_chunked else event


class _AnyTokens:
    """Of one choice, however its events are written."""

    __slots__ = ("_choice", "_stream", "_writer")

    def __init__(self, stream: EventStream, writer: AnswerWriter, choice: int) -> None:
        self._stream, self._writer, self._choice = stream, writer, choice

    def token(self, token_id: int, text: str) -> Write | None:
        return self._stream.write(self._writer.text(self._choice, 1, text))


class _ChunkedTexts:
    """Of one choice whose events differ in their text alone, as those of nearly all do.

    What a token needs of its client is in few places: most of a token's time in here is waiting for
    memory that was last looked at a step ago.
    """

    __slots__ = ("_after", "_before", "_size", "_transport")

    def __init__(self, transport: asyncio.WriteTransport, before: bytes, after: bytes) -> None:
        self._transport, self._before, self._after = transport, before, after + b"\r\n"
        self._size = len(before) + len(after)

    def token(self, token_id: int, text: str) -> Write | None:
        if not text:
            return None
        written = encode_basestring(text).encode()
        size = self._size + len(written)
        return self._transport, b"%x\r\n%b%b%b" % (size, self._before, written, self._after)


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)
