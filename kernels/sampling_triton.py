"""The Triton kernels of ``kernels.sampling``. Loaded on GPUs only, and by tests.

Three kernels, none of which sorts the vocabulary: the largest rank (``sampling_ranks_triton``) of
every chunk; the mass of every chunk; and one program per draw that searches for its token
(``sampling_search_triton``). No sum depends on timing, so the same input gives the same token.
Nothing waits for the host: it can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.sampling_arrays import (
    CUTOFF,
    POSITION,
    ROW,
    SEED,
    SEQUENCE_INDEX,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)
from kernels.sampling_ranks_triton import BELOW, IDS, NOT_FINITE, logit_of, rank_of, token_of
from kernels.sampling_search_triton import shortest_beginning, weights_of

# A count that is never reached.
_ENDLESS = tl.constexpr(1 << 60)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """``chunk``: logits read at once; ``short``: ranks kept in registers. Powers of 2."""

    chunk: int = 2048
    short: int = 1024
    num_warps: int = 8


CONFIG = SamplingConfig()


@triton.jit
def largest_kernel(logits, row_stride, vocab, peaks, chunks, CHUNK: tl.constexpr):
    """Program (r, c): the largest rank of row r's chunk c, NOT_FINITE if it holds NaN or +inf."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * row_stride + ids, ids < vocab, float("-inf"))
    bad = tl.max(((x != x) | (x == float("inf"))).to(tl.int32), axis=0)
    best = tl.max(rank_of(x, ids), axis=0)
    tl.store(peaks + row * chunks + chunk, tl.where(bad > 0, NOT_FINITE, best))


@triton.jit
def _largest(peaks, chunks, CHUNKS: tl.constexpr):
    at = tl.arange(0, CHUNKS)
    return tl.max(tl.load(peaks + at, at < chunks, BELOW), axis=0)


@triton.jit
def _settings(
    values, draws, draw, ROW: tl.constexpr, TEMPERATURE: tl.constexpr, CUTOFF: tl.constexpr
):
    """Row, temperature and cutoff of a draw."""
    mine = values + draw
    row = tl.load(mine + ROW * draws)
    temperature = tl.load(mine + TEMPERATURE * draws).to(tl.float64, bitcast=True)
    cutoff = tl.load(mine + CUTOFF * draws).to(tl.float64, bitcast=True)
    return row, temperature, cutoff


@triton.jit
def mass_kernel(
    logits,
    row_stride,
    vocab,
    values,
    draws,
    peaks,
    masses,
    chunks,
    ROW: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    CUTOFF: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Program (d, c): the mass of chunk c for draw d, of what its cutoff leaves."""
    draw, chunk = tl.program_id(0), tl.program_id(1)
    row, temperature, cutoff = _settings(values, draws, draw, ROW, TEMPERATURE, CUTOFF)
    largest = logit_of(_largest(peaks + row * chunks, chunks, CHUNKS)).to(tl.float64)
    if temperature > 0:
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + row * row_stride + ids, ids < vocab, float("-inf"))
        kept = x.to(tl.float64) - largest >= cutoff
        mass = tl.sum(tl.where(kept, weights_of(x, largest, temperature), 0.0), axis=0)
        tl.store(masses + draw * chunks + chunk, mass)


@triton.jit
def _uniform(seed, sequence_index, position):
    """As ``core.random.uniform``."""
    low_position = (position & IDS).to(tl.uint32)
    high_position = ((position >> 32) & IDS).to(tl.uint32)
    sequence = (sequence_index & IDS).to(tl.uint32)
    high, low, _, _ = tl.philox(seed, low_position, high_position, sequence, sequence * 0)
    bits = (high.to(tl.int64) << 21) | (low.to(tl.int64) >> 11)
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def draw_kernel(
    logits,
    row_stride,
    vocab,
    values,
    draws,
    peaks,
    masses,
    chunks,
    candidates,
    tokens,
    ROW: tl.constexpr,
    TOP_K: tl.constexpr,
    SEED: tl.constexpr,
    SEQUENCE_INDEX: tl.constexpr,
    POSITION: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TOP_P: tl.constexpr,
    CUTOFF: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    SHORT: tl.constexpr,
):
    """Program d: the token of draw d."""
    draw = tl.program_id(0)
    mine = values + draw
    row, temperature, cutoff = _settings(values, draws, draw, ROW, TEMPERATURE, CUTOFF)
    top_k = tl.load(mine + TOP_K * draws)
    top_p = tl.load(mine + TOP_P * draws).to(tl.float64, bitcast=True)
    x = logits + row * row_stride
    tops = peaks + row * chunks
    best = _largest(tops, chunks, CHUNKS)
    largest = logit_of(best)
    token = token_of(best)
    finite = (best != NOT_FINITE) & (largest != float("-inf"))
    if finite & (temperature > 0):
        found = candidates + draw.to(tl.int64) * SHORT
        at = tl.arange(0, CHUNKS)
        mass = tl.sum(tl.load(masses + draw * chunks + at, at < chunks, 0.0), axis=0)
        limit = best * 0 + BELOW
        if top_k > 0:
            limit, mass = shortest_beginning(
                x, vocab, tops, chunks, found, best, temperature, cutoff, limit,
                top_k, float("inf"), False, CHUNK, SHORT,
            )  # fmt: skip
        if top_p < 1:
            limit, mass = shortest_beginning(
                x, vocab, tops, chunks, found, best, temperature, cutoff, limit,
                _ENDLESS, top_p * mass, False, CHUNK, SHORT,
            )  # fmt: skip
        drawn = _uniform(
            tl.load(mine + SEED * draws),
            tl.load(mine + SEQUENCE_INDEX * draws),
            tl.load(mine + POSITION * draws),
        )
        last, _ = shortest_beginning(
            x, vocab, tops, chunks, found, best, temperature, cutoff, limit,
            _ENDLESS, drawn * mass, True, CHUNK, SHORT,
        )  # fmt: skip
        token = token_of(last)
    tl.store(tokens + draw, tl.where(finite, token, -1))


def launch_sampling(
    logits: torch.Tensor, values: torch.Tensor, config: SamplingConfig = CONFIG
) -> torch.Tensor:
    """int64 [D] for float32 logits [R, vocab] and ``SamplingArrays.values`` on the same device."""
    (rows, vocab), draws = logits.shape, values.shape[1]
    tokens = torch.empty(draws, dtype=torch.int64, device=logits.device)
    if draws == 0:
        return tokens
    chunks = triton.cdiv(vocab, config.chunk)
    peaks = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
    masses = torch.empty(draws, chunks, dtype=torch.float64, device=logits.device)
    candidates = torch.empty(draws, config.short, dtype=torch.int64, device=logits.device)
    sizes = {"CHUNK": config.chunk, "CHUNKS": triton.next_power_of_2(chunks)}
    warps = {"num_warps": config.num_warps}
    stride = logits.stride(0)
    largest_kernel[(rows, chunks)](
        logits, stride, vocab, peaks, chunks, CHUNK=config.chunk, **warps
    )
    mass_kernel[(draws, chunks)](
        logits, stride, vocab, values, draws, peaks, masses, chunks,
        ROW=ROW, TEMPERATURE=TEMPERATURE, CUTOFF=CUTOFF, **sizes, **warps,
    )  # fmt: skip
    draw_kernel[(draws,)](
        logits, stride, vocab, values, draws, peaks, masses, chunks, candidates, tokens,
        ROW=ROW, TOP_K=TOP_K, SEED=SEED, SEQUENCE_INDEX=SEQUENCE_INDEX, POSITION=POSITION,
        TEMPERATURE=TEMPERATURE, TOP_P=TOP_P, CUTOFF=CUTOFF,
        SHORT=config.short, **sizes, **warps,
    )  # fmt: skip
    return tokens
