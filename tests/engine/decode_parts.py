"""Slices of sequences that can be told apart, for tests of batches."""

from __future__ import annotations

import numpy as np

from core.request import SamplingParams
from core.step import SampleSpec, Slice, StepPlan
from engine.batch import BatchArrays, batch_arrays

BLOCK_SIZE = 4


def part(index: int, start: int, count: int = 1, samples: bool = True) -> Slice:
    """Tokens from 100 × ``index`` on, in blocks from 50 × ``index`` on."""
    blocks = -(-(start + count) // BLOCK_SIZE)
    spec = SampleSpec(SamplingParams(max_tokens=9), start + count)
    return Slice(
        index,
        start,
        np.arange(count, dtype=np.int32) + 100 * index,
        np.arange(blocks, dtype=np.int32) + 50 * index,
        (spec,) if samples else (),
    )


def arrays_of(*parts: Slice) -> BatchArrays:
    return batch_arrays(StepPlan(parts), BLOCK_SIZE)
