"""The answers of a worker's attempts as text, on their way to the router.

Covers: detokenizing and stop strings for each of an attempt's n answers, which answers go on.
Does not cover: choosing tokens (``engine``), where answers are sent (``worker.router_streams``).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.outputs import TokenOutput
from core.request import AttemptKey, FinishReason, SamplingParams
from crossdock.v1 import worker_pb2 as pb
from text.answer import AnswerText
from text.tokenizer import Tokenizer
from wire.attempts import key_to_wire, logprobs_to_wire


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """``stopped``: a stop string ended the answer, which its scheduler does not know yet."""

    key: AttemptKey
    index: int
    message: pb.SequenceOutput
    stopped: bool


class Answers:
    """Text of all answers that go on, by attempt and index."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[AttemptKey, dict[int, AnswerText]] = {}

    def begin(self, key: AttemptKey, params: SamplingParams) -> None:
        """Prepares for the tokens of all n answers."""
        self._texts[key] = {
            index: AnswerText(self._tokenizer, params.stop, params.min_tokens)
            for index in range(params.n)
        }

    def goes_on(self, key: AttemptKey) -> bool:
        """Whether some answer of this attempt has not ended."""
        return bool(self._texts.get(key))

    def forget(self, key: AttemptKey) -> None:
        self._texts.pop(key, None)

    def push(self, output: TokenOutput) -> AnswerPart | None:
        """A token as it is told; None for an answer that ended or was aborted meanwhile."""
        texts = self._texts.get(output.key, {})
        text = texts.get(output.index)
        if text is None:
            return None
        new, finish = _push(text, output)
        if finish is not None:
            del texts[output.index]
        message = pb.SequenceOutput(
            key=key_to_wire(output.key),
            index=output.index,
            token_ids=[output.token],
            text=new,
            finish_reason="" if finish is None else finish.value,
            cached_tokens=output.cached_tokens if output.first else 0,
            logprobs=[] if output.logprobs is None else [logprobs_to_wire(output.logprobs)],
        )
        stopped = finish is not None and output.finish is None
        return AnswerPart(output.key, output.index, message, stopped)


def _push(text: AnswerText, output: TokenOutput) -> tuple[str, FinishReason | None]:
    """Text that is certain now, and why the answer ends here if it does."""
    delta = text.push([output.token])
    if delta.stopped:
        return delta.text, FinishReason.STOP
    if output.finish is None:
        return delta.text, None
    return delta.text + text.finish(), output.finish
