"""Shapes of OpenAI answers: whole bodies and the chunks of a stream, for both endpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from core.errors import CrossdockError

Json = dict[str, Any]


class AnswerShape(Protocol):
    """How one endpoint writes an answer. ``finish`` is None while the answer goes on."""

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, text: str, finish: str) -> Json: ...

    def opening(self) -> Json | None: ...

    def part(self, text: str, finish: str | None) -> Json: ...


class CompletionShape:
    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def whole(self, text: str, finish: str) -> Json:
        return self.part(text, finish)

    def opening(self) -> Json | None:
        return None

    def part(self, text: str, finish: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


class ChatShape:
    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def whole(self, text: str, finish: str) -> Json:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}

    def opening(self) -> Json | None:
        return self._delta({"role": "assistant", "content": ""}, None)

    def part(self, text: str, finish: str | None) -> Json:
        return self._delta({"content": text} if text else {}, finish)

    def _delta(self, delta: Json, finish: str | None) -> Json:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


@dataclass(frozen=True, slots=True)
class AnswerWriter:
    """Writes one answer. ``created``: Unix seconds."""

    shape: AnswerShape
    request_id: str
    model: str
    created: int
    include_usage: bool = False

    def whole(self, text: str, finish: str, usage: Json) -> Json:
        body = self._body(self.shape.whole_object, [self.shape.whole(text, finish)])
        return {**body, "usage": usage}

    def opening(self) -> bytes:
        choice = self.shape.opening()
        return b"" if choice is None else self._chunk([choice])

    def part(self, text: str) -> bytes:
        return self._chunk([self.shape.part(text, None)])

    def closing(self, finish: str, usage: Json) -> bytes:
        """The last chunks of a stream that ended well."""
        last = self._chunk([self.shape.part("", finish)])
        return last + (self._chunk([], usage) if self.include_usage else b"") + DONE

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> bytes:
        body = self._body(self.shape.chunk_object, choices)
        # OpenAI: with include_usage every chunk has the field, null in all but the last.
        return event({**body, "usage": usage} if self.include_usage else body)

    def _body(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.shape.prefix + self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


DONE = b"data: [DONE]\n\n"


def event(body: Json) -> bytes:
    """One server-sent event."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def error_body(error: CrossdockError) -> Json:
    return {
        "error": {
            "message": error.message,
            "type": error.status.openai_type,
            "param": error.metadata.get("field"),
            "code": error.reason,
            "metadata": error.metadata,
        }
    }
