"""The Triton kernels of ``kernels.sampling``. Loaded on GPUs only, and by tests.

A token's place in the order (-logit, id) is one 64-bit number, its rank: the logit's bits made to
compare as integers, above the id's complement. Three kernels, none of which sorts the vocabulary:
the largest rank of every chunk; the mass of every chunk; and one program per draw that halves the
range of ranks its answer can lie in, adding up what is above, until one is left. The first guess
(the likely tokens) nearly always leaves few enough to go on in registers, and chunks without a
token in the range are not read. No sum depends on timing, so the same input gives the same token.
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

# Ranks below that of -inf and above that of +inf, the ids' bits, and a count that is never reached.
_BELOW = tl.constexpr(-0x7FFFFFFF00000000)
_NOT_FINITE = tl.constexpr(0x7FFFFFFF00000000)
_IDS = tl.constexpr(0xFFFFFFFF)
_ENDLESS = tl.constexpr(1 << 60)
# ln(1e-4): tokens less likely than this share of the likeliest are rarely needed.
_UNLIKELY = tl.constexpr(-9.2)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """``chunk``: logits read at once; ``short``: ranks kept in registers. Powers of 2."""

    chunk: int = 2048
    short: int = 1024
    num_warps: int = 8


CONFIG = SamplingConfig()


@triton.jit
def _rank(x, ids):
    x = tl.where(x == 0.0, 0.0, x)  # -0 is 0
    bits = x.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (~ids.to(tl.int64) & _IDS)


@triton.jit
def _logit(rank):
    ordered = (rank >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _token(rank):
    return ~rank & _IDS


@triton.jit
def _middle(low, high):
    """Between two ranks without overflow."""
    return (low >> 1) + (high >> 1) + (low & high & 1)


@triton.jit
def largest_kernel(logits, row_stride, vocab, peaks, chunks, CHUNK: tl.constexpr):
    """Program (r, c): the largest rank of row r's chunk c, _NOT_FINITE if it holds NaN or +inf."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * row_stride + ids, ids < vocab, float("-inf"))
    bad = tl.max(((x != x) | (x == float("inf"))).to(tl.int32), axis=0)
    best = tl.max(_rank(x, ids), axis=0)
    tl.store(peaks + row * chunks + chunk, tl.where(bad > 0, _NOT_FINITE, best))


@triton.jit
def _largest(peaks, chunks, CHUNKS: tl.constexpr):
    at = tl.arange(0, CHUNKS)
    return tl.max(tl.load(peaks + at, at < chunks, _BELOW), axis=0)


@triton.jit
def _weights(x, largest, temperature):
    return tl.exp((x.to(tl.float64) - largest) / temperature)


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
    row = tl.load(values + ROW * draws + draw)
    temperature = tl.load(values + TEMPERATURE * draws + draw).to(tl.float64, bitcast=True)
    cutoff = tl.load(values + CUTOFF * draws + draw).to(tl.float64, bitcast=True)
    largest = _logit(_largest(peaks + row * chunks, chunks, CHUNKS)).to(tl.float64)
    if temperature > 0:
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + row * row_stride + ids, ids < vocab, float("-inf"))
        kept = x.to(tl.float64) - largest >= cutoff
        mass = tl.sum(tl.where(kept, _weights(x, largest, temperature), 0.0), axis=0)
        tl.store(masses + draw * chunks + chunk, mass)


@triton.jit
def _ranks_of_chunk(row, chunk, vocab, largest, cutoff, low, high, CHUNK: tl.constexpr):
    """Logits, ranks, and which of them are kept and in (low, high]."""
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row + ids, ids < vocab, float("-inf"))
    rank = _rank(x, ids)
    inside = (rank > low) & (rank <= high) & (x.to(tl.float64) - largest >= cutoff)
    return x, rank, inside


@triton.jit
def _split(
    row, vocab, peaks, chunks, largest, temperature, cutoff, low, pivot, high, CHUNK: tl.constexpr
):
    """How many are in (low, high] and in (pivot, high]; the latter's mass and lowest rank."""
    inside, above, mass, lowest = low * 0, low * 0, largest * 0, low * 0 + _NOT_FINITE
    for chunk in range(chunks):
        if tl.load(peaks + chunk) > low:
            x, rank, hits = _ranks_of_chunk(row, chunk, vocab, largest, cutoff, low, high, CHUNK)
            upper = hits & (rank > pivot)
            inside += tl.sum(hits.to(tl.int64), axis=0)
            above += tl.sum(upper.to(tl.int64), axis=0)
            mass += tl.sum(tl.where(upper, _weights(x, largest, temperature), 0.0), axis=0)
            lowest = tl.minimum(lowest, tl.min(tl.where(upper, rank, _NOT_FINITE), axis=0))
    return inside, above, mass, lowest


@triton.jit
def _collect(row, vocab, peaks, chunks, largest, cutoff, low, high, found, CHUNK: tl.constexpr):
    """Writes the ranks in (low, high] to ``found``; how many."""
    tl.debug_barrier()  # the ranks of the search before have been read
    count = low * 0
    for chunk in range(chunks):
        if tl.load(peaks + chunk) > low:
            _, rank, hits = _ranks_of_chunk(row, chunk, vocab, largest, cutoff, low, high, CHUNK)
            place = count + tl.cumsum(hits.to(tl.int64), axis=0) - 1
            tl.store(found + place, rank, hits)
            count += tl.sum(hits.to(tl.int64), axis=0)
    tl.debug_barrier()  # what other threads wrote is read next
    return count


@triton.jit
def _enough(count, mass, wanted_count, wanted_mass, BEYOND: tl.constexpr):
    reached = mass > wanted_mass if BEYOND else mass >= wanted_mass
    return reached | (count >= wanted_count)


@triton.jit
def _shortest(
    row,
    vocab,
    peaks,
    chunks,
    found,
    best,
    temperature,
    cutoff,
    limit,
    wanted_count,
    wanted_mass,
    BEYOND: tl.constexpr,
    CHUNK: tl.constexpr,
    SHORT: tl.constexpr,
):
    """The rank that ends the shortest beginning, of ranks >= limit, that is enough; its mass.

    All of them where none is.
    """
    largest = _logit(best).to(tl.float64)
    low, high = limit - 1, best
    count, mass = best * 0, largest * 0
    pivot = _rank((largest + temperature * _UNLIKELY).to(tl.float32), best * 0)
    pivot = tl.minimum(tl.maximum(pivot, low), high)
    left = best * 0 + vocab
    last = best  # of those above
    step = 0
    while left > SHORT:
        inside, above, upper_mass, lowest = _split(
            row, vocab, peaks, chunks, largest, temperature, cutoff, low, pivot, high, CHUNK
        )
        if _enough(count + above, mass + upper_mass, wanted_count, wanted_mass, BEYOND):
            low = pivot
            left = above
        else:
            high = pivot
            left = inside - above
            count += above
            mass += upper_mass
            last = tl.minimum(last, lowest)
        pivot = _next_pivot(low, high, step)
        step += 1
    left = _collect(row, vocab, peaks, chunks, largest, cutoff, low, high, found, CHUNK)
    at = tl.arange(0, SHORT)
    ranks = tl.load(found + at, at < left, _BELOW)
    weights = tl.where(at < left, _weights(_logit(ranks), largest, temperature), 0.0)
    while left > 1:
        pivot = _next_pivot(low, high, step)
        step += 1
        hits = (ranks > pivot) & (ranks <= high)
        above = tl.sum(hits.to(tl.int64), axis=0)
        upper_mass = tl.sum(tl.where(hits, weights, 0.0), axis=0)
        if _enough(count + above, mass + upper_mass, wanted_count, wanted_mass, BEYOND):
            low = pivot
            left = above
        else:
            high = pivot
            left -= above
            count += above
            mass += upper_mass
    # None is left where all are not enough: then it is the last one above.
    only = tl.max(tl.where(ranks <= high, ranks, _BELOW), axis=0)
    last = tl.minimum(last, tl.min(tl.where(ranks > high, ranks, best), axis=0))
    rank = tl.where(left > 0, only, last)
    own = tl.sum(tl.where((ranks == rank) & (left > 0), weights, 0.0), axis=0)
    return rank, mass + own


@triton.jit
def _next_pivot(low, high, step):
    """By the logits' values, which halves a flat range best, and by ranks, which always ends."""
    value = _rank(_logit(low) * 0.5 + _logit(high) * 0.5, low * 0)
    by_value = (step % 2 == 0) & (value > low) & (value < high)
    return tl.where(by_value, value, _middle(low, high))


@triton.jit
def _uniform(seed, sequence_index, position):
    """As ``core.random.uniform``."""
    low_position = (position & _IDS).to(tl.uint32)
    high_position = ((position >> 32) & _IDS).to(tl.uint32)
    sequence = (sequence_index & _IDS).to(tl.uint32)
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
    row = tl.load(mine + ROW * draws)
    temperature = tl.load(mine + TEMPERATURE * draws).to(tl.float64, bitcast=True)
    cutoff = tl.load(mine + CUTOFF * draws).to(tl.float64, bitcast=True)
    top_k = tl.load(mine + TOP_K * draws)
    top_p = tl.load(mine + TOP_P * draws).to(tl.float64, bitcast=True)
    x = logits + row * row_stride
    tops = peaks + row * chunks
    best = _largest(tops, chunks, CHUNKS)
    largest = _logit(best)
    token = _token(best)
    finite = (best != _NOT_FINITE) & (largest != float("-inf"))
    if finite & (temperature > 0):
        found = candidates + draw.to(tl.int64) * SHORT
        at = tl.arange(0, CHUNKS)
        mass = tl.sum(tl.load(masses + draw * chunks + at, at < chunks, 0.0), axis=0)
        limit = best * 0 + _BELOW
        if top_k > 0:
            limit, mass = _shortest(
                x, vocab, tops, chunks, found, best, temperature, cutoff, limit,
                top_k, float("inf"), False, CHUNK, SHORT,
            )  # fmt: skip
        if top_p < 1:
            limit, mass = _shortest(
                x, vocab, tops, chunks, found, best, temperature, cutoff, limit,
                _ENDLESS, top_p * mass, False, CHUNK, SHORT,
            )  # fmt: skip
        drawn = _uniform(
            tl.load(mine + SEED * draws),
            tl.load(mine + SEQUENCE_INDEX * draws),
            tl.load(mine + POSITION * draws),
        )
        last, _ = _shortest(
            x, vocab, tops, chunks, found, best, temperature, cutoff, limit,
            _ENDLESS, drawn * mass, True, CHUNK, SHORT,
        )  # fmt: skip
        token = _token(last)
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
