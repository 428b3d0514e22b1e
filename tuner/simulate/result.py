"""What a simulation gives: arrays with one entry per request, and what the workers did.

Plain values. Does not cover: percentiles, tables and plots (``tuner.simulate.summary``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.request import Role

Seconds = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class TokenGaps:
    """Times between tokens of all answers, in groups: group i stands for ``weights[i]`` answers
    whose next ``steps[i]`` gaps were ``first_s[i]``, ``first_s[i] + growth_s[i]``, …"""

    first_s: Seconds
    growth_s: Seconds
    steps: Counts
    weights: Counts


@dataclass(frozen=True, slots=True, eq=False)
class WorkerTrack:
    """One worker over time, sampled: ``busy`` is the share (0 to 1) of the time since the sample
    before in which its engine computed; ``waiting`` requests; ``used_blocks`` of its pool."""

    name: str
    role: Role
    at_s: Seconds
    busy: Seconds
    running: Counts
    waiting: Counts
    used_blocks: Counts
    num_blocks: int
    busy_s: float
    steps: int
    prefill_tokens: int
    recomputed_tokens: int
    decode_tokens: int
    preemptions: int
    prefix_tokens_hit: int


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """Times in seconds since the first moment of the trace, [n] in the order of its requests; NaN
    where it never came to that. ``failures``: by request, the reason of its end without an answer.

    ``prefill_worker`` and ``decode_worker``: index into ``workers``, -1 for none. ``attempts``:
    how many each request took. ``transferred_tokens``: whose KV went over an edge;
    ``transfer_busy_s``: all edges together. ``is_cut_short``: it ended because more requests than
    its limit allowed had missed their latencies.
    """

    arrivals_s: Seconds
    prompt_tokens: Counts
    output_tokens: Counts
    first_token_s: Seconds
    last_token_s: Seconds
    cached_tokens: Counts
    attempts: Counts
    prefill_worker: Counts
    decode_worker: Counts
    failures: dict[int, str]
    gaps: TokenGaps
    workers: tuple[WorkerTrack, ...]
    ended_s: float
    transferred_tokens: int
    transfer_busy_s: float
    decisions: int
    is_cut_short: bool = False

    @property
    def ttft_s(self) -> Seconds:
        return self.first_token_s - self.arrivals_s

    @property
    def tpot_s(self) -> Seconds:
        """NaN for answers of one token."""
        more = self.output_tokens - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(more > 0, (self.last_token_s - self.first_token_s) / more, np.nan)
