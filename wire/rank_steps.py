"""Steps of the engine and their results, to and from rank.proto: what the ranks of a replica get.

Arrays travel as bytes, all slices' in one piece, because every step passes here. Sampling
parameters are translated once per request and remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from core.request import SamplingParams
from core.step import (
    BlockCopy,
    IntArray,
    SampledToken,
    SampleSpec,
    Slice,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from crossdock.v1 import rank_pb2 as pb
from crossdock.v1 import worker_pb2
from wire.attempts import sampling_from_wire, sampling_to_wire

_INT32 = np.dtype("<i4")
_INT64 = np.dtype("<i8")
_REMEMBERED = 1024


def plan_to_wire(plan: StepPlan, *, draws_here: bool) -> pb.RankPlan:
    """``draws_here``: the receiver draws the tokens, so that it needs those before them where
    penalties count them. Sampling parameters must have come through worker.proto themselves."""
    slices = plan.slices
    return pb.RankPlan(
        sequence_ids=_pack([part.sequence_id for part in slices], _INT64),
        starts=_pack([part.start for part in slices], _INT64),
        token_counts=_pack([len(part.tokens) for part in slices], _INT32),
        tokens=_join([part.tokens for part in slices]),
        table_sizes=_pack([len(part.block_table) for part in slices], _INT32),
        block_tables=_join([part.block_table for part in slices]),
        draws=[_draws(i, part, draws_here) for i, part in enumerate(slices) if part.samples],
        copies=_pack([(copy.source, copy.destination) for copy in plan.copies], _INT32),
    )


def plan_from_wire(message: pb.RankPlan) -> StepPlan:
    """Arrays are read-only. Raises ``ValueError`` where the arrays' lengths make no sense."""
    draws = {drawn.slice: _specs(drawn) for drawn in message.draws}
    parts = zip(
        _unpack(message.sequence_ids, _INT64).tolist(),
        _unpack(message.starts, _INT64).tolist(),
        _split(message.tokens, message.token_counts),
        _split(message.block_tables, message.table_sizes),
        strict=True,
    )
    slices = [
        Slice(sequence_id, start, tokens, table, draws.get(i, ()))
        for i, (sequence_id, start, tokens, table) in enumerate(parts)
    ]
    copies = _unpack(message.copies, _INT32).reshape(-1, 2).tolist()
    return StepPlan(tuple(slices), tuple(BlockCopy(*pair) for pair in copies))


def result_to_wire(number: int, result: StepResult) -> pb.RankStepResult:
    tokens = [token for row in result.sampled.values() for token in row]
    return pb.RankStepResult(
        number=number,
        sequence_ids=list(result.sampled),
        counts=[len(row) for row in result.sampled.values()],
        tokens=[token.token for token in tokens],
        logprobs=[
            _logprobs_to_wire(i, token.logprobs)
            for i, token in enumerate(tokens)
            if token.logprobs is not None
        ],
        failed=result.failed,
    )


def result_from_wire(message: pb.RankStepResult) -> StepResult:
    logprobs = {drawn.token: _logprobs_from_wire(drawn) for drawn in message.logprobs}
    tokens = [SampledToken(token, logprobs.get(i)) for i, token in enumerate(message.tokens)]
    ends = accumulate(message.counts, initial=0)
    rows = [tuple(tokens[start:end]) for start, end in pairwise(ends)]
    sampled = dict(zip(message.sequence_ids, rows, strict=True))
    return StepResult(sampled, dict(message.failed))


def _draws(index: int, part: Slice, draws_here: bool) -> pb.RankDraws:
    spec = part.samples[0]
    needs_tokens = draws_here and spec.params.penalized
    return pb.RankDraws(
        slice=index,
        sampling=_serialized(spec.params),
        position=spec.position,
        tokens=_join([spec.tokens]) if needs_tokens else b"",
        prompt_length=spec.prompt_length,
        sequence_indices=[sample.sequence_index for sample in part.samples],
        banned_token_ids=spec.banned_token_ids,
    )


def _specs(drawn: pb.RankDraws) -> tuple[SampleSpec, ...]:
    params = _parsed(drawn.sampling)
    tokens = _unpack(drawn.tokens, _INT32)
    banned = tuple(drawn.banned_token_ids)
    return tuple(
        SampleSpec(params, drawn.position, tokens, drawn.prompt_length, index, banned)
        for index in drawn.sequence_indices
    )


@lru_cache(maxsize=_REMEMBERED)
def _serialized(params: SamplingParams) -> bytes:
    return sampling_to_wire(params).SerializeToString(deterministic=True)


@lru_cache(maxsize=_REMEMBERED)
def _parsed(raw: bytes) -> SamplingParams:
    return sampling_from_wire(worker_pb2.Sampling.FromString(raw))


def _logprobs_to_wire(index: int, logprobs: TokenLogprobs) -> pb.DrawnLogprobs:
    return pb.DrawnLogprobs(
        token=index,
        logprob=logprobs.logprob,
        top_token_ids=logprobs.top_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def _logprobs_from_wire(drawn: pb.DrawnLogprobs) -> TokenLogprobs:
    return TokenLogprobs(drawn.logprob, tuple(drawn.top_token_ids), tuple(drawn.top_logprobs))


def _pack(values: Sequence[Any], dtype: np.dtype[Any]) -> bytes:
    return np.array(values, dtype).tobytes()


def _join(arrays: Sequence[IntArray]) -> bytes:
    return b"".join([array.astype(_INT32, copy=False).tobytes() for array in arrays])


def _unpack(raw: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(raw, dtype)


def _split(raw: bytes, counts: bytes) -> Iterator[IntArray]:
    """Adjacent views of ``raw``, as long as ``counts`` says."""
    values = _unpack(raw, _INT32)
    ends = accumulate(_unpack(counts, _INT32).tolist(), initial=0)
    bounds = list(ends)
    if bounds[-1] != len(values):
        raise ValueError(f"{len(values)} numbers came where {bounds[-1]} were told of")
    return (values[start:end] for start, end in pairwise(bounds))
