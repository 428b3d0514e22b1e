"""One engine step: what a scheduler asks the engine to compute, and what comes back.

A step is a set of slices, one per sequence: the tokens of that sequence whose KV is not yet
computed (a prefill chunk, or one token in decode). There is no separate prefill or decode step.
What is made anew for each token of each step is not frozen, though nobody changes it: frozen
dataclasses take four times as long to make.
Does not cover: how slices are chosen (the workers' schedulers) or computed (``engine``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.request import SamplingParams
from core.values import value

IntArray = npt.NDArray[np.int32]


def _no_tokens() -> IntArray:
    return np.empty(0, dtype=np.int32)


@dataclass(slots=True)
class SampleSpec:
    """Draw the token that follows a slice. ``position`` is its index in the whole sequence.

    ``token_buffer`` (int32) begins with the tokens before it, the first ``prompt_length`` of them
    the prompt's; tokens are only appended to it, so that a sequence may name the same array in
    each step. ``sequence_index`` says which of the n answers this is.
    """

    params: SamplingParams
    position: int
    token_buffer: IntArray = field(default_factory=_no_tokens)
    prompt_length: int = 0
    sequence_index: int = 0
    banned_token_ids: tuple[int, ...] = ()

    @property
    def tokens(self) -> IntArray:
        """int32 [position]: those before the token that is drawn."""
        return self.token_buffer[: self.position]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities: no temperature, penalty or filter.

    ``logprob`` of the chosen token; ``top_ids`` and ``top_logprobs`` of the likeliest ones,
    likeliest first.
    """

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(slots=True)
class SampledToken:
    """A drawn token; ``logprobs`` if they were asked for."""

    token: int
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class Slice:
    """``tokens`` (int32 [n]) of one sequence at positions ``start`` to ``start + n - 1``.

    ``block_table`` (int32) holds the ids of all blocks that cover positions 0 to start + n - 1. A
    later view of the same array, for the same sequence, begins with all that an earlier one holds.
    ``samples``: one draw for each answer that goes on from here: none while more of the prompt
    follows in a later step, n at the end of a prompt, which differ in ``sequence_index`` only.
    """

    sequence_id: int
    start: int
    tokens: IntArray
    block_table: IntArray
    samples: tuple[SampleSpec, ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy one block of the pool into another one."""

    source: int
    destination: int


@value()
class StepPlan:
    """The slices of one step, never empty, and the block copies to make before any of them."""

    slices: tuple[Slice, ...]
    copies: tuple[BlockCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.slices)


@value()
class StepResult:
    """Drawn tokens by sequence id, in the order of the slice's ``samples``.

    ``failed`` says by sequence id why no token could be drawn (logits that are no numbers).
    """

    sampled: dict[int, tuple[SampledToken, ...]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
