"""Attempt keys, sampling parameters, tokens, hashes and load, to and from worker.proto."""

from __future__ import annotations

import numpy as np

from core.block_hash import HashArray, TokenArray
from core.outputs import Load
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import TokenLogprobs
from crossdock.v1 import worker_pb2 as pb

_TOKEN_WIRE = np.dtype("<i4")
_HASH_WIRE = np.dtype("<u8")


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
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        # An empty map takes as long to set as all else here.
        logit_bias=dict(params.logit_bias) or None,
        n=params.n,
        logprobs=params.logprobs,
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
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=tuple(sorted(sampling.logit_bias.items())),
        n=sampling.n,
        logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
    )


def logprobs_to_wire(logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        logprob=logprobs.logprob,
        top_token_ids=logprobs.top_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def logprobs_from_wire(logprobs: pb.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(
        logprobs.logprob, tuple(logprobs.top_token_ids), tuple(logprobs.top_logprobs)
    )


def hashes_to_wire(hashes: HashArray) -> bytes:
    return hashes.astype(_HASH_WIRE, copy=False).tobytes()


def hashes_from_wire(raw: bytes) -> HashArray:
    return np.frombuffer(raw, dtype=_HASH_WIRE)


def load_to_wire(load: Load) -> pb.Load:
    return pb.Load(
        running=load.running,
        waiting=load.waiting,
        free_blocks=load.free_blocks,
        pending_prefill_tokens=load.pending_prefill_tokens,
    )


def load_from_wire(load: pb.Load) -> Load:
    return Load(load.running, load.waiting, load.free_blocks, load.pending_prefill_tokens)
