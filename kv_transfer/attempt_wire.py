"""Attempt keys, sampling parameters and tokens on the wire of worker.proto and handoff.proto."""

from __future__ import annotations

import numpy as np
from crossdock.v1 import worker_pb2 as pb

from core.block_hash import TokenArray
from core.request import AttemptKey, RequestKey, SamplingParams

_TOKEN_WIRE = np.dtype("<i4")


def key_to_wire(key: AttemptKey) -> pb.AttemptKey:
    return pb.AttemptKey(
        tenant=key.request.tenant, request_id=key.request.request_id, attempt=key.attempt
    )


def key_from_wire(key: pb.AttemptKey) -> AttemptKey:
    return AttemptKey(RequestKey(key.tenant, key.request_id), key.attempt)


def tokens_to_wire(tokens: TokenArray) -> bytes:
    return tokens.astype(_TOKEN_WIRE, copy=False).tobytes()


def tokens_from_wire(raw: bytes) -> TokenArray:
    return np.frombuffer(raw, dtype=_TOKEN_WIRE).astype(np.int32, copy=False)


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


def sampling_from_wire(sampling: pb.Sampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        min_tokens=sampling.min_tokens,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        seed=sampling.seed,
    )
