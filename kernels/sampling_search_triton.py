"""Finds where the shortest beginning of the order ends that holds so many tokens or so much mass.

For the Triton kernel of ``kernels.sampling_triton``; nothing here sorts. The range of ranks that
the answer can lie in is halved, adding up what is above, until one is left. The first guess (the
likely tokens) nearly always leaves few enough to go on in registers, and chunks without a token in
the range are not read. No sum depends on timing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.sampling_ranks_triton import BELOW, NOT_FINITE, logit_of, middle_of, rank_of

# ln(1e-4): tokens less likely than this share of the likeliest are rarely needed.
_UNLIKELY = tl.constexpr(-9.2)


@triton.jit
def weights_of(x, largest, temperature):
    return tl.exp((x.to(tl.float64) - largest) / temperature)


@triton.jit
def _ranks_of_chunk(row, chunk, vocab, largest, cutoff, low, high, CHUNK: tl.constexpr):
    """Logits, ranks, and which of them are kept and in (low, high]."""
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row + ids, ids < vocab, float("-inf"))
    rank = rank_of(x, ids)
    inside = (rank > low) & (rank <= high) & (x.to(tl.float64) - largest >= cutoff)
    return x, rank, inside


@triton.jit
def _split(
    row, vocab, peaks, chunks, largest, temperature, cutoff, low, pivot, high, CHUNK: tl.constexpr
):
    """How many are in (low, high] and in (pivot, high]; the latter's mass and lowest rank."""
    inside, above, mass, lowest = low * 0, low * 0, largest * 0, low * 0 + NOT_FINITE
    for chunk in range(chunks):
        if tl.load(peaks + chunk) > low:
            x, rank, hits = _ranks_of_chunk(row, chunk, vocab, largest, cutoff, low, high, CHUNK)
            upper = hits & (rank > pivot)
            inside += tl.sum(hits.to(tl.int64), axis=0)
            above += tl.sum(upper.to(tl.int64), axis=0)
            mass += tl.sum(tl.where(upper, weights_of(x, largest, temperature), 0.0), axis=0)
            lowest = tl.minimum(lowest, tl.min(tl.where(upper, rank, NOT_FINITE), axis=0))
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
def shortest_beginning(
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
    largest = logit_of(best).to(tl.float64)
    low, high = limit - 1, best
    count, mass = best * 0, largest * 0
    pivot = rank_of((largest + temperature * _UNLIKELY).to(tl.float32), best * 0)
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
    ranks = tl.load(found + at, at < left, BELOW)
    weights = tl.where(at < left, weights_of(logit_of(ranks), largest, temperature), 0.0)
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
    only = tl.max(tl.where(ranks <= high, ranks, BELOW), axis=0)
    last = tl.minimum(last, tl.min(tl.where(ranks > high, ranks, best), axis=0))
    rank = tl.where(left > 0, only, last)
    own = tl.sum(tl.where((ranks == rank) & (left > 0), weights, 0.0), axis=0)
    return rank, mass + own


@triton.jit
def _next_pivot(low, high, step):
    """By the logits' values, which halves a flat range best, and by ranks, which always ends."""
    value = rank_of(logit_of(low) * 0.5 + logit_of(high) * 0.5, low * 0)
    by_value = (step % 2 == 0) & (value > low) & (value < high)
    return tl.where(by_value, value, middle_of(low, high))
