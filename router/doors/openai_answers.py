"""OpenAI answers: whole bodies and the chunks of a stream, for both endpoints.

Does not cover: how log-probabilities are written (``router.doors.openai_logprobs``), errors
(``router.doors.http_errors``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Protocol

from core.values import value
from router.doors.openai_logprobs import ChatLogprobs, CompletionLogprobs, LogprobsWriter, joined
from router.flow.messages import Emit, Finish
from router.requests.answer_stream import AnswerStream, ChoiceEvent
from text.token_bytes import TokenBytes

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


class AnswerShape(Protocol):
    """How one endpoint writes a choice. ``finish`` is None while it goes on."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __hash__(self) -> int: ...

    def logprobs_writer(self, tokens: TokenBytes) -> LogprobsWriter: ...

    def whole(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json: ...

    def opening(self, index: int) -> Json | None: ...

    def part(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json: ...


class CompletionShape:
    """Of /v1/completions. Has no state: one for all answers."""

    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def logprobs_writer(self, tokens: TokenBytes) -> LogprobsWriter:
        return CompletionLogprobs(tokens)

    def whole(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return self.part(index, text, logprobs, finish)

    def opening(self, index: int) -> Json | None:
        return None

    def part(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class ChatShape:
    """Of /v1/chat/completions. Has no state: one for all answers."""

    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def logprobs_writer(self, tokens: TokenBytes) -> LogprobsWriter:
        return ChatLogprobs(tokens)

    def whole(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def opening(self, index: int) -> Json | None:
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def part(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return self._delta(index, {"content": text} if text else {}, logprobs, finish)

    def _delta(self, index: int, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


@dataclass(slots=True)
class Usage:
    """Tokens so far, over all choices. Each prompt counts once, however many answers it has.

    The end of a choice tells how many it had: those that came before need not all be counted.
    """

    prompt_tokens: int
    _completion: dict[int, int] = field(default_factory=dict)
    _cached: dict[int, int] = field(default_factory=dict)

    def add(self, item: ChoiceEvent) -> None:
        if isinstance(item.event, Emit):
            self.came(item.choice, len(item.event.token_ids))
        else:
            self._completion[item.choice] = item.event.completion_tokens
            self._cached[item.prompt] = item.event.cached_tokens

    def came(self, choice: int, tokens: int) -> None:
        self._completion[choice] = self._completion.get(choice, 0) + tokens

    def so_far(self) -> Json:
        completion = sum(self._completion.values())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def final(self) -> Json:
        details = {"cached_tokens": sum(self._cached.values())}
        return {**self.so_far(), "prompt_tokens_details": details}


@value()
class AnswerHead:
    """What all bodies of one answer have in common. ``created``: Unix seconds."""

    request_id: str
    model: str
    created: int
    system_fingerprint: str

    def body(self, prefix: str, kind: str, choices: list[Any]) -> Json:
        return {
            "id": prefix + self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
        }


class AnswerWriter:
    """Writes the answer to one call, whole or in chunks (server-sent events).

    ``include_usage``: a last chunk with the usage; ``continuous_usage``: usage so far in each.
    """

    def __init__(
        self,
        shape: AnswerShape,
        head: AnswerHead,
        answer: AnswerStream,
        tokens: TokenBytes,
        *,
        include_usage: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        self._shape = shape
        self._head = head
        self._num_choices = answer.num_choices
        self._usage = Usage(answer.prompt_tokens)
        self._logprobs = [shape.logprobs_writer(tokens) for _ in range(answer.num_choices)]
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._around: tuple[bytes, bytes] | None = None
        self._around_texts: dict[int, tuple[bytes, bytes]] = {}

    def whole(self, items: Sequence[ChoiceEvent]) -> Json:
        """The body with all choices, from all that came."""
        choices = [_Choice() for _ in range(self._num_choices)]
        for item in items:
            self._usage.add(item)
            choices[item.choice].add(item.event, self._logprobs_of(item))
        written = [
            self._shape.whole(index, "".join(choice.texts), joined(choice.logprobs), choice.finish)
            for index, choice in enumerate(choices)
        ]
        body = self._head.body(self._shape.prefix, self._shape.whole_object, written)
        return {**body, "usage": self._usage.final()}

    def opening(self) -> bytes:
        choices = [self._shape.opening(index) for index in range(self._num_choices)]
        return b"".join(self._chunk([choice]) for choice in choices if choice is not None)

    def parts(self, items: Sequence[ChoiceEvent]) -> bytes:
        """Chunks for what came; none for tokens whose text has yet to come."""
        chunks = []
        for item in items:
            self._usage.add(item)
            event, logprobs = item.event, self._logprobs_of(item)
            if isinstance(event, Finish):
                chunks.append(self._finish(item.choice, event.reason.value))
            elif logprobs:
                part = self._shape.part(item.choice, event.text, logprobs, None)
                chunks.append(self._chunk([part]))
            elif event.text:
                chunks.append(self._text(item.choice, event.text))
        return b"".join(chunks)

    def text(self, choice: int, tokens: int, text: str) -> bytes:
        """As `parts`, of so many tokens that only bring text."""
        self._usage.came(choice, tokens)
        return self._text(choice, text) if text else b""

    def around_text(self, choice: int) -> tuple[bytes, bytes] | None:
        """All that is the same in each chunk with text, before and after its JSON string; None
        where other things differ, too. Who writes such chunks need not tell of their tokens."""
        if self._continuous_usage:
            return None
        around = self._around_texts.get(choice)
        if around is None:
            before, after = self._around_choice()
            opening, closing = _part_around_text(self._shape, choice)
            around = self._around_texts[choice] = before + opening, closing + after
        return around

    def _text(self, choice: int, text: str) -> bytes:
        around = self.around_text(choice)
        if around is None:
            return self._chunk([self._shape.part(choice, text, None, None)])
        before, after = around
        return before + encode_basestring(text).encode() + after

    def _finish(self, choice: int, reason: str) -> bytes:
        if self._continuous_usage:
            return self._chunk([self._shape.part(choice, "", None, reason)])
        before, after = self._around_choice()
        return before + _finish_part(self._shape, choice, reason) + after

    def _around_choice(self) -> tuple[bytes, bytes]:
        """All that is the same in each chunk of one choice without usage, before and after it."""
        if self._around is None:
            head, prefix = self._head, self._shape.prefix
            shared = head.model, head.created, head.system_fingerprint, self._include_usage
            before, between, after = _around_id_and_choice(self._shape, *shared)
            self._around = before + _json(prefix + head.request_id) + between, after
        return self._around

    def closing(self) -> bytes:
        """The end of a stream that ended well."""
        last = self._chunk([], self._usage.final()) if self._include_usage else b""
        return last + DONE

    def _logprobs_of(self, item: ChoiceEvent) -> Json | None:
        event = item.event
        if isinstance(event, Finish) or not event.logprobs:
            return None
        return self._logprobs[item.choice].part(event.token_ids, event.logprobs)

    def _chunk(self, choices: list[Any], usage: Json | None = None) -> bytes:
        if usage is None and self._continuous_usage:
            usage = self._usage.so_far()
        return _chunk(self._shape, self._head, choices, usage, self._include_usage)


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    finish: str | None = None

    def add(self, event: Emit | Finish, logprobs: Json | None) -> None:
        if isinstance(event, Finish):
            self.finish = event.reason.value
            return
        self.texts.append(event.text)
        if logprobs is not None:
            self.logprobs.append(logprobs)


def sse_event(body: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + _json(body) + b"\n\n"


def _chunk(
    shape: AnswerShape, head: AnswerHead, choices: list[Any], usage: Json | None, has_usage: bool
) -> bytes:
    """OpenAI: with include_usage every chunk has the field, null in all but the last."""
    body = head.body(shape.prefix, shape.chunk_object, choices)
    return sse_event({**body, "usage": usage} if has_usage else body)


# No other string of a chunk is this one: names and ids are printable.
_MARK = "\0"


# The same for all answers that begin within a second.
@lru_cache(maxsize=64)
def _around_id_and_choice(
    shape: AnswerShape, model: str, created: int, fingerprint: str, has_usage: bool
) -> tuple[bytes, bytes, bytes]:
    """A chunk of one choice, in three parts: the id is between the first two."""
    head = AnswerHead(_MARK, model, created, fingerprint)
    before, after = _around_mark(_chunk(shape, head, [_MARK], None, has_usage))
    before, _, between = before.partition(_json(shape.prefix + _MARK))
    return before, between, after


# What is the same in all answers: so many choices of either endpoint.
@lru_cache(maxsize=256)
def _part_around_text(shape: AnswerShape, choice: int) -> tuple[bytes, bytes]:
    return _around_mark(_json(shape.part(choice, _MARK, None, None)))


@lru_cache(maxsize=256)
def _finish_part(shape: AnswerShape, choice: int, reason: str) -> bytes:
    return _json(shape.part(choice, "", None, reason))


def _around_mark(written: bytes) -> tuple[bytes, bytes]:
    before, _, after = written.partition(_json(_MARK))
    return before, after


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode()
