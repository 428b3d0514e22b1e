"""Outputs of an attempt as the messages that a client reads from this worker.

Does not cover: which outputs, and to whom (``decode_worker.readable_answers``).
"""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.v1 import inference_pb2, token_stream_pb2
from crossdock.v1 import worker_pb2 as pb


def read_response(
    outputs: Sequence[pb.SequenceOutput], start: int, prompt_tokens: int, worker: str
) -> token_stream_pb2.ReadResponse:
    """Those from ``start`` on of all ``outputs`` so far; neighbours of one answer share a chunk."""
    response = token_stream_pb2.ReadResponse(position=len(outputs))
    chunk: inference_pb2.Chunk | None = None
    index = -1
    for output in outputs[start:]:
        if chunk is None or output.index != index:
            index = output.index
            chunk = response.responses.add(index=index).chunk
            chunk.SetInParent()
        _append(chunk, output)
        if output.finish_reason:
            chunk = None
            complete = _complete(outputs, output, prompt_tokens, worker)
            response.responses.add(index=index, complete=complete)
    return response


def _append(chunk: inference_pb2.Chunk, output: pb.SequenceOutput) -> None:
    chunk.token_ids.extend(output.token_ids)
    if output.text:
        chunk.text += output.text
    for token_id, logprobs in zip(output.token_ids, output.logprobs, strict=False):
        told = chunk.logprobs.add(token_id=token_id, logprob=logprobs.logprob)
        for top_id, logprob in zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True):
            told.top.add(token_id=top_id, logprob=logprob)


def _complete(
    outputs: Sequence[pb.SequenceOutput], last: pb.SequenceOutput, prompt_tokens: int, worker: str
) -> inference_pb2.Complete:
    """Without what only the router knows: times, and how many attempts there were."""
    return inference_pb2.Complete(
        finish_reason=last.finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=sum(len(o.token_ids) for o in outputs if o.index == last.index),
        cached_tokens=max(output.cached_tokens for output in outputs),
        timings=inference_pb2.Timings(decode_worker=worker),
    )
