"""The answers of a worker's attempts as text, on their way to the router.

Covers: detokenizing and stop strings for each of an attempt's n answers, which answers go on.
Does not cover: choosing tokens (``engine``), where answers are sent (``worker.router_streams``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from core.outputs import TokenOutput
from core.request import AttemptKey, FinishReason, SamplingParams
from crossdock.v1 import worker_pb2 as pb
from text.answer import AnswerText
from text.tokenizer import Tokenizer
from wire.attempts import key_to_wire, logprobs_to_wire


class Tells(Protocol):
    """Who sends tokens on."""

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput:
        """A place for an output."""
        ...

    def go_on(self, key: AttemptKey, index: int, token: int, text: str) -> bool:
        """One more token of an answer that ends nothing. False: it has to be an output."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """``stopped``: a stop string ended the answer, which its scheduler does not know yet;
    ``last``: no other answer of the attempt goes on."""

    key: AttemptKey
    index: int
    stopped: bool
    last: bool


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Answers that go on, by index; ``key`` as every message names it."""

    key: pb.AttemptKey
    texts: dict[int, AnswerText]


class Answers:
    """Text of all answers that go on, by attempt and index."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._attempts: dict[AttemptKey, _Attempt] = {}

    def begin(self, key: AttemptKey, params: SamplingParams) -> None:
        """Prepares for the tokens of all n answers."""
        texts = {
            index: AnswerText(self._tokenizer, params.stop, params.min_tokens)
            for index in range(params.n)
        }
        self._attempts[key] = _Attempt(key_to_wire(key), texts)

    def forget(self, key: AttemptKey) -> None:
        self._attempts.pop(key, None)

    def tell(self, output: TokenOutput, tells: Tells) -> AnswerEnd | None:
        """Gives ``tells`` a token with its text; says if its answer ends there.

        It is told nothing if the answer ended or was aborted meanwhile.
        """
        attempt = self._attempts.get(output.key)
        text = None if attempt is None else attempt.texts.get(output.index)
        if attempt is None or text is None:
            return None
        new, finish = _push(text, output)
        brings_more = output.first or output.logprobs is not None or finish is not None
        if not brings_more and tells.go_on(output.key, output.index, output.token, new):
            return None
        _fill(tells.new_output(output.key), attempt.key, output, new, finish)
        if finish is None:
            return None
        del attempt.texts[output.index]
        stopped = output.finish is None
        return AnswerEnd(output.key, output.index, stopped, not attempt.texts)


def _fill(
    message: pb.SequenceOutput,
    key: pb.AttemptKey,
    output: TokenOutput,
    text: str,
    finish: FinishReason | None,
) -> None:
    # In place, and only what is not the default: there is one for each token of each step.
    message.key.CopyFrom(key)
    message.token_ids.append(output.token)
    message.text = text
    if output.index:
        message.index = output.index
    if finish is not None:
        message.finish_reason = finish.value
    if output.first:
        message.cached_tokens = output.cached_tokens
    if output.logprobs is not None:
        message.logprobs.append(logprobs_to_wire(output.logprobs))


def _push(text: AnswerText, output: TokenOutput) -> tuple[str, FinishReason | None]:
    """Text that is certain now, and why the answer ends here if it does."""
    new, stopped = text.push(output.token)
    if stopped:
        return new, FinishReason.STOP
    if output.finish is None:
        return new, None
    return new + text.finish(), output.finish
