"""One HTTP client that gets its answer as server-sent events, each at the moment when it comes.

Chunks go straight to the connection's transport, between the head of the response and its end,
which aiohttp writes: waking a task for each token would take longer than all the rest. What a slow
client has not read is kept there, at most its whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import HttpVersion11, web

from router.answer_stream import AnswerStream, ChoiceEvent
from router.openai_answers import AnswerWriter


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

    def tokens(self, choice: int, token_ids: Sequence[int], text: str) -> None:
        self._write(self._writer.text(choice, len(token_ids), text))

    def event(self, item: ChoiceEvent) -> None:
        chunk = self._writer.parts([item])
        if self._answer.goes_on:
            self._write(chunk)
        else:
            self.last += chunk

    def _write(self, chunk: bytes) -> None:
        transport = self._transport
        # An empty chunk would be the end of the body. Who is gone is noticed by aiohttp.
        if chunk and transport is not None and not transport.is_closing():
            transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._is_chunked else chunk)
