"""One engine step: what a scheduler asks the engine to compute, and what comes back.

A step is a set of slices, one per sequence: the tokens of that sequence whose KV is not yet
computed (a prefill chunk, or one token in decode). There is no separate prefill or decode step.
Does not cover: how slices are chosen (the workers' schedulers) or computed (``engine``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.request import SamplingParams

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """Draw the token that follows a slice. ``position`` is its index in the whole sequence."""

    params: SamplingParams
    position: int
    sequence_index: int = 0
    banned_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """``tokens`` (int32 [n]) of one sequence at positions ``start`` to ``start + n - 1``.

    ``block_table`` (int32) holds the ids of all blocks that cover positions 0 to start + n - 1.
    ``sample`` is None while more of the prompt follows in a later step.
    """

    sequence_id: int
    start: int
    tokens: IntArray
    block_table: IntArray
    sample: SampleSpec | None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The slices of one step; never empty."""

    slices: tuple[Slice, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.slices)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sampled token by sequence id, for the slices that asked for one."""

    sampled: dict[int, int] = field(default_factory=dict)
