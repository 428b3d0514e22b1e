"""A whole answer, put together from the responses of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from crossdock.client.errors import ServerError
from crossdock.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Output:
    """One of the n sequences. ``chunk``: all its chunks in one; ``complete``: how it ended."""

    index: int
    text: str
    chunk: pb.Chunk
    complete: pb.Complete

    @property
    def token_ids(self) -> list[int]:
        return list(self.chunk.token_ids)

    @property
    def finish_reason(self) -> str:
        return self.complete.finish_reason


@dataclass(frozen=True, slots=True)
class Answer:
    """``outputs`` by index: n of them. ``request_id``: under which the server knew the request."""

    request_id: str
    outputs: tuple[Output, ...]

    @property
    def text(self) -> str:
        """Of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Of the first output."""
        return self.outputs[0].token_ids

    @property
    def prompt_tokens(self) -> int:
        return self.outputs[0].complete.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt whose KV blocks some worker already held."""
        return self.outputs[0].complete.cached_tokens

    @property
    def completion_tokens(self) -> int:
        """Of all outputs."""
        return sum(output.complete.completion_tokens for output in self.outputs)


@dataclass(slots=True)
class _Parts:
    texts: list[str] = field(default_factory=list)
    chunk: pb.Chunk = field(default_factory=pb.Chunk)
    complete: pb.Complete | None = None


class AnswerBuilder:
    """``add`` every response of a stream, then ``build``. ``n``: how many sequences were asked."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._parts: dict[int, _Parts] = {}

    def add(self, response: pb.GenerateResponse) -> None:
        parts = self._parts.setdefault(response.index, _Parts())
        if response.HasField("complete"):
            parts.complete = response.complete
            return
        parts.texts.append(response.chunk.text)
        # Joins what is repeated (token ids and all that comes with each of them).
        parts.chunk.MergeFrom(response.chunk)

    def build(self, request_id: str) -> Answer:
        """Raises ServerError if the stream ended before one of the sequences did."""
        missing = set(range(self._n)) - self._parts.keys()
        if missing:
            raise _incomplete(f"sequence {min(missing)} never came")
        outputs = tuple(_output(index, parts) for index, parts in sorted(self._parts.items()))
        return Answer(request_id, outputs)


def _output(index: int, parts: _Parts) -> Output:
    if parts.complete is None:
        raise _incomplete(f"sequence {index} has no end")
    text = "".join(parts.texts)
    parts.chunk.text = text
    return Output(index, text, parts.chunk, parts.complete)


def _incomplete(what: str) -> ServerError:
    message = f"the server closed the stream early: {what}"
    return ServerError(grpc.StatusCode.DATA_LOSS, message, reason="INCOMPLETE_ANSWER")
