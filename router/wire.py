"""worker.proto to and from the router's plain values."""

from __future__ import annotations

import numpy as np
from crossdock.v1 import worker_pb2 as pb

from core.block_hash import HashArray, TokenArray
from core.handoff import FailureCause
from core.outputs import Load
from core.request import AttemptKey, FinishReason, RequestKey, SamplingParams
from router.flow_messages import AttemptFailed, Output
from router.placement import WorkerId

_FINISH_REASONS = {reason.value: reason for reason in FinishReason}


def key_to_wire(key: AttemptKey) -> pb.AttemptKey:
    return pb.AttemptKey(
        tenant=key.request.tenant, request_id=key.request.request_id, attempt=key.attempt
    )


def key_from_wire(key: pb.AttemptKey) -> AttemptKey:
    return AttemptKey(RequestKey(key.tenant, key.request_id), key.attempt)


def tokens_to_wire(tokens: TokenArray) -> bytes:
    """int32, little-endian."""
    return tokens.astype("<i4", copy=False).tobytes()


def hashes_from_wire(raw: bytes) -> HashArray:
    """uint64, little-endian."""
    return np.frombuffer(raw, dtype="<u8")


def sampling_to_wire(params: SamplingParams) -> pb.Sampling:
    return pb.Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        min_tokens=params.min_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        seed=params.seed,
    )


def load_from_wire(load: pb.Load) -> Load:
    return Load(load.running, load.waiting, load.free_blocks, load.pending_prefill_tokens)


def output_from_wire(worker: WorkerId, output: pb.SequenceOutput) -> Output | AttemptFailed:
    """An output with a finish reason that this router doesn't know counts as a failed attempt."""
    reason = _FINISH_REASONS.get(output.finish_reason)
    if output.finish_reason and reason is None:
        detail = f"unknown finish reason {output.finish_reason!r}"
        return AttemptFailed(worker, output.key.attempt, FailureCause.INTERNAL, detail)
    return Output(
        worker,
        output.key.attempt,
        tuple(output.token_ids),
        output.text,
        reason,
        output.cached_tokens,
    )


def failure_from_wire(worker: WorkerId, failed: pb.AttemptFailed) -> AttemptFailed:
    name = pb.AttemptFailed.Cause.Name(failed.cause)
    known = name in FailureCause.__members__
    cause = FailureCause[name] if known else FailureCause.INTERNAL
    return AttemptFailed(worker, failed.key.attempt, cause, failed.detail)
