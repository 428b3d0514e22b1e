"""What a worker says to the router about its attempts and its load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from core.request import AttemptKey, FinishReason
from core.step import TokenLogprobs


# Not frozen, for the reason that is told in ``core.step``.
@dataclass(slots=True)
class TokenOutput:
    """One new token of one of an attempt's n answers. ``finish`` is None while it goes on.

    ``first`` marks the first token of the answer; ``cached_tokens`` counts the prompt tokens
    that some worker had in cache.
    """

    key: AttemptKey
    token: int
    finish: FinishReason | None
    first: bool = False
    cached_tokens: int = 0
    index: int = 0
    logprobs: TokenLogprobs | None = None


# A tuple, as one is made after each event of a worker.
class Load(NamedTuple):
    """How busy a worker is. ``pending_prefill_tokens``: accepted and not yet computed."""

    running: int
    waiting: int
    free_blocks: int
    pending_prefill_tokens: int


@dataclass(slots=True)
class StepCounters:
    """Totals since the worker started.

    ``prefill_tokens_computed``: prompt tokens computed for the first time in their request here;
    ``recomputed_tokens``: tokens computed again after preemption or a damaged piece;
    ``prefix_tokens_hit``: prompt tokens taken from the prefix cache.
    """

    steps: int = 0
    prefill_tokens_computed: int = 0
    recomputed_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    prefix_tokens_hit: int = 0
