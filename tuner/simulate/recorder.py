"""Writes down what happens in a simulation: times by request, gaps between tokens, workers by time.

Does not cover: what the numbers mean (``tuner.simulate.summary``).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from core.latency_profile import FEMTOSECONDS
from core.outputs import Load, StepCounters
from core.request import Role
from router.flow.messages import Finish
from tuner.simulate.miss_limit import MissLimit
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult, TokenGaps, WorkerTrack

# Beyond so many samples of a worker every other one is dropped, and from then on half as many come.
_MOST_SAMPLES = 480


class GapRecorder:
    """Times between tokens. Femtoseconds."""

    def __init__(self) -> None:
        self._first = array("d")
        self._growth = array("d")
        self._steps = array("i")
        self._weights = array("i")

    def step(self, gaps: Mapping[int, int]) -> None:
        """One token of each of some answers: how many of them came after which gap."""
        for gap, weight in gaps.items():
            self.run(gap, 0, 1, weight)

    def run(self, first: int, growth: int, steps: int, weight: int) -> None:
        """``weight`` answers had ``steps`` gaps: ``first``, ``first + growth``, …"""
        self._first.append(first / FEMTOSECONDS)
        self._growth.append(growth / FEMTOSECONDS)
        self._steps.append(steps)
        self._weights.append(weight)

    def result(self) -> TokenGaps:
        return TokenGaps(
            np.array(self._first),
            np.array(self._growth),
            np.array(self._steps, dtype=np.int32),
            np.array(self._weights, dtype=np.int32),
        )


class RequestRecorder:
    """Arrays with one entry for each request of a trace."""

    def __init__(self, trace: RequestTrace) -> None:
        count = len(trace)
        # How many requests have ended, and when the last one did.
        self.ended = 0
        self.ended_at_s = 0.0
        self._trace = trace
        self._first_token_s = np.full(count, math.nan)
        self._last_token_s = np.full(count, math.nan)
        self._cached_tokens = np.zeros(count, dtype=np.int32)
        self._attempts = np.zeros(count, dtype=np.int32)
        self._prefill_worker = np.full(count, -1, dtype=np.int32)
        self._decode_worker = np.full(count, -1, dtype=np.int32)
        self._failures: dict[int, str] = {}

    def first_token(self, index: int, at_s: float) -> None:
        self._first_token_s[index] = at_s

    def finished(self, index: int, at_s: float, finish: Finish, prefill: int, decode: int) -> None:
        """``prefill`` (-1 for none) and ``decode``: numbers of the workers."""
        self._note_end(at_s)
        self._last_token_s[index] = at_s
        self._cached_tokens[index] = finish.cached_tokens
        self._attempts[index] = finish.attempts
        self._prefill_worker[index] = prefill
        self._decode_worker[index] = decode

    def failed(self, index: int, at_s: float, attempts: int, reason: str) -> None:
        self._note_end(at_s)
        self._attempts[index] = attempts
        self._failures[index] = reason

    def has_passed(self, limit: MissLimit, now_s: float) -> bool:
        trace = self._trace
        return limit.is_passed(
            now_s, trace.arrivals_s, trace.output_tokens, self._first_token_s, self._last_token_s
        )

    def _note_end(self, at_s: float) -> None:
        self.ended += 1
        self.ended_at_s = max(self.ended_at_s, at_s)

    def result(
        self,
        gaps: TokenGaps,
        workers: Sequence[WorkerTrack],
        ended_s: float,
        transferred_tokens: int,
        transfer_busy_s: float,
        decisions: int,
        is_cut_short: bool,
    ) -> SimulationResult:
        return SimulationResult(
            arrivals_s=self._trace.arrivals_s,
            prompt_tokens=self._trace.prompt_tokens,
            output_tokens=self._trace.output_tokens,
            first_token_s=self._first_token_s,
            last_token_s=self._last_token_s,
            cached_tokens=self._cached_tokens,
            attempts=self._attempts,
            prefill_worker=self._prefill_worker,
            decode_worker=self._decode_worker,
            failures=self._failures,
            gaps=gaps,
            workers=tuple(workers),
            ended_s=ended_s,
            transferred_tokens=transferred_tokens,
            transfer_busy_s=transfer_busy_s,
            decisions=decisions,
            is_cut_short=is_cut_short,
        )


class WorkerRecorder:
    """Samples of one worker."""

    def __init__(self, name: str, role: Role, num_blocks: int) -> None:
        self._name = name
        self._role = role
        self._num_blocks = num_blocks
        # Time, time busy until then, running, waiting, used blocks.
        self._samples: list[tuple[int, int, int, int, int]] = []

    def sample(self, now: int, busy: int, load: Load, used_blocks: int) -> None:
        self._samples.append((now, busy, load.running, load.waiting, used_blocks))

    def thin_out(self) -> None:
        """Keeps every other sample, the latest among them."""
        self._samples = self._samples[1::2]

    def result(self, counters: StepCounters, busy: int) -> WorkerTrack:
        columns = np.array(self._samples, dtype=np.float64).reshape(-1, 5).T
        at, busy_at = columns[0], columns[1]
        spans = np.diff(at, prepend=0.0)
        shares = np.diff(busy_at, prepend=0.0) / np.where(spans > 0, spans, 1.0)
        running, waiting, used = columns[2:].astype(np.int32)
        return WorkerTrack(
            name=self._name,
            role=self._role,
            at_s=at / FEMTOSECONDS,
            busy=shares,
            running=running,
            waiting=waiting,
            used_blocks=used,
            num_blocks=self._num_blocks,
            busy_s=busy / FEMTOSECONDS,
            steps=counters.steps,
            prefill_tokens=counters.prefill_tokens_computed,
            recomputed_tokens=counters.recomputed_tokens,
            decode_tokens=counters.decode_tokens,
            preemptions=counters.preemptions,
            prefix_tokens_hit=counters.prefix_tokens_hit,
        )


class SampleTimes:
    """When samples are taken: every ``interval``, which doubles when there are too many."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._count = 0

    def taken(self) -> bool:
        """One more was taken. True if every other one is to be dropped."""
        self._count += 1
        if self._count < _MOST_SAMPLES:
            return False
        self._count //= 2
        self.interval *= 2
        return True
