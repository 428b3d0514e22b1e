"""Reads the stream of one OpenAI answer into an ``AnswerLog``. Pure: no socket.

A piece counts as soon as it holds text, reasoning or a tool call. Servers may also say how many
tokens it holds: by ``token_ids``, or by a ``usage`` that grows from chunk to chunk. Pieces whose
token has no text of its own (the end of an answer, a part of a character) are counted on request.
"""

from __future__ import annotations

import json
from typing import Any

from core.errors import Unavailable
from tuner.load.records import DISCONNECTED, MALFORMED_STREAM, STREAM_ERROR, Usage
from tuner.load.sse import EventParser
from tuner.load.target import AnswerLog

_DONE = b"[DONE]"
_VISIBLE = ("content", "reasoning_content", "reasoning", "tool_calls")


class OpenAIStream:
    """``feed`` bytes while they come, then ``close``; both raise ``Unavailable``.

    ``count_hidden``: a piece without text counts too if the usage that came with it has grown.
    """

    def __init__(self, answer: AnswerLog, count_hidden: bool = False) -> None:
        self._answer = answer
        self._count_hidden = count_hidden
        self._events = EventParser()
        self._finished = False
        # Tokens of the usage that some piece has been said to hold.
        self._counted = 0

    def feed(self, received: bytes) -> None:
        for data in self._events.feed(received):
            if data == _DONE:
                self._finished = True
            else:
                self._event(_read_event(data))

    def close(self) -> None:
        """The server has closed the stream."""
        if not self._finished:
            message = "the stream broke off before the answer had ended"
            raise Unavailable(message, reason=DISCONNECTED)
        self._answer.require_tokens()

    def _event(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            raise Unavailable(error_message(event), reason=STREAM_ERROR)
        try:
            self._read_usage(event.get("usage"))
            for choice in event.get("choices") or ():
                self._choice(choice)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _malformed(f"{error!r} in {event!r}") from None

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        visible = choice.get("text") or any(delta.get(name) for name in _VISIBLE)
        if visible or (self._count_hidden and self._holds_hidden()):
            ids = choice.get("token_ids")
            self._answer.chunk(len(ids) if ids else self._new_tokens())
        if choice.get("finish_reason"):
            self._finished = True

    def _holds_hidden(self) -> bool:
        """A usage that comes only at the end tells of no piece."""
        usage = self._answer.usage
        told_before = self._counted > 0 or not self._answer.chunk_times
        return usage is not None and told_before and usage.completion_tokens > self._counted

    def _new_tokens(self) -> int | None:
        """Tokens since the piece before, with those whose text was held back; None if unknown."""
        if self._answer.usage is None:
            return None
        before, self._counted = self._counted, self._answer.usage.completion_tokens
        return self._counted - before or None

    def _read_usage(self, usage: dict[str, Any] | None) -> None:
        if not usage:
            return
        details = usage.get("prompt_tokens_details") or {}
        self._answer.usage = Usage(
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
        )


def error_message(body: object) -> str:
    """The words of an OpenAI error body, or of one that resembles it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:500]


def _read_event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise _malformed(f"no JSON: {data[:100]!r}") from None
    if not isinstance(event, dict):
        raise _malformed(f"no JSON object: {data[:100]!r}")
    return event


def _malformed(what: str) -> Unavailable:
    return Unavailable(f"unreadable event in the stream: {what[:300]}", reason=MALFORMED_STREAM)
