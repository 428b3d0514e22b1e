"""Hashes of the blocks of all prompts of a trace, without hashing their tokens.

Pure. They are equal exactly where those of ``core.block_hash`` are. Each is a seed and the number
of the block: so those of one prompt follow each other, and dictionaries of hashes keep side by side
what comes and goes together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.block_hash import HashArray
from tuner.simulate.requests import RequestTrace

# Keeps the seeds of shared parts from those of requests.
_SHARED = 1 << 31
_HALF = np.uint64(32)
# Of SplitMix64.
_SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
_FACTORS = tuple(map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


class PromptHashes:
    """``block_size`` in tokens."""

    def __init__(self, trace: RequestTrace, block_size: int) -> None:
        self._part_tokens = trace.part_tokens
        self._block_size = block_size
        self._lengths: list[int] = (trace.prompt_tokens // block_size).tolist()
        self._numbers = np.arange(max(self._lengths), dtype=np.uint64)
        # By request, for what it shares with nobody.
        self._own = _mixed(np.arange(1, len(trace) + 1, dtype=np.uint64))
        # Of all shared parts of all requests; where those of each begin.
        self._seeds, self._starts = _seeds_of_parts(trace)
        # For each block of a prompt the part that holds its last token.
        ends = np.arange(1, len(self._numbers) + 1, dtype=np.intp) * block_size - 1
        self._part_of = ends // self._part_tokens

    def of(self, index: int) -> HashArray:
        """Of all full blocks of a request's prompt. uint64."""
        count = self._lengths[index]
        first, end = self._starts[index], self._starts[index + 1]
        shared = min(count, (end - first) * self._part_tokens // self._block_size)
        hashes: HashArray = self._numbers[:count] + self._own[index]
        if shared:
            seeds = self._seeds[first:end].take(self._part_of[:shared])
            np.add(seeds, self._numbers[:shared], out=hashes[:shared])
        return hashes


def _seeds_of_parts(trace: RequestTrace) -> tuple[HashArray, list[int]]:
    """For each part of each prompt a value that is equal exactly where the part and all before it
    are, as long as different numbers of blocks are added: parts with consecutive ids have the value
    of the first of them, as traces number in a row what comes anew."""
    if not len(trace.shared):
        return np.empty(0, dtype=np.uint64), [0] * (len(trace) + 1)
    counts = np.array([len(ids) for ids in trace.shared], dtype=np.intp)
    starts = np.concatenate([[0], counts.cumsum()])
    parts = np.concatenate(trace.shared)
    before = starts[:-1].repeat(counts)
    place = (np.arange(len(parts)) - before).astype(np.uint64)
    # Up to each part the sum of terms in which each part has its share and its place.
    terms = _mixed(((place + np.uint64(_SHARED)) << _HALF) + parts.astype(np.uint64))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), terms.cumsum()])
    chained = sums[1:] - sums.take(before)
    follows = np.zeros(len(parts), dtype=np.bool_)
    follows[1:] = (parts[1:] == parts[:-1] + 1) & (place[1:] > 0)
    run = np.maximum.accumulate(np.where(follows, 0, np.arange(len(parts))))
    return chained.take(run), starts.tolist()


def _mixed(values: npt.NDArray[np.uint64]) -> HashArray:
    """A different one for each (the finalizer of SplitMix64: Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014)."""
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])
