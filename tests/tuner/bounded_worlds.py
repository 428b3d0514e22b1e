"""Small clusters with traffic and a goal, to compare what simulation reaches with its bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from core.config import ClusterSpec
from core.kv_config import KVSpec
from core.latency_profile import (
    EngineProfile,
    LatencyProfile,
    Origin,
    RowCurve,
    StepModel,
    StepWork,
    TransferModel,
    TransferProfile,
)
from core.shards import ParallelShape
from tuner.load.metrics import Slo
from tuner.search.bounds import Bound, Traffic, bound_rate
from tuner.search.evaluate import Goal
from tuner.search.space import Accelerators, Candidate, Limits, PoolChoice
from tuner.search.specs import model_candidate
from tuner.simulate.requests import RequestTrace
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import met

_BLOCK = 4
_BASE = ClusterSpec(kv=KVSpec(block_size=_BLOCK))
_MICROSECOND = 10**9
_PART = 8
# Overload by a fifth has been missed by then, however patient the SLO is.
_SERVICES = 12


@dataclass(frozen=True, slots=True)
class World:
    """``lengths``: ranges of prompts' and of answers' tokens; ``prefixes``: so many different
    beginnings of ``prefix_parts`` parts each, of which every prompt has one; 0: none is shared.
    ``steady``: requests come at equal distances, which is what a cluster serves most of."""

    candidate: Candidate
    goal: Goal
    prompts: tuple[int, int]
    answers: tuple[int, int]
    prefixes: int
    prefix_parts: int
    steady: bool

    def trace(self, count: int, seed: int) -> RequestTrace:
        """``count`` requests, on average one each second."""
        generator = np.random.default_rng(seed)
        prompts = generator.integers(*self.prompts, count, endpoint=True)
        answers = generator.integers(*self.answers, count, endpoint=True)
        shared = []
        if self.prefixes:
            prompts = prompts + self.prefix_parts * _PART
            of_prefix = generator.integers(0, self.prefixes, count) * self.prefix_parts
            shared = [first + np.arange(self.prefix_parts, dtype=np.int32) for first in of_prefix]
        gaps = np.ones(count - 1) if self.steady else generator.exponential(1.0, count - 1)
        return RequestTrace(
            "drawn",
            np.concatenate([[0.0], np.cumsum(gaps)]),
            prompts.astype(np.int32),
            answers.astype(np.int32),
            [ids.astype(np.int32) for ids in shared],
            part_tokens=_PART,
        )

    def bound(self, trace: RequestTrace) -> Bound:
        return bound_rate(self.candidate, Traffic.of(trace, self.goal.share), self.goal.slo)

    def count(self, rate: float) -> int:
        """Requests of a window that is long enough at ``rate``."""
        return max(100, round(_SERVICES * self.service_s * rate))

    @property
    def service_s(self) -> float:
        """For as long as a request that meets the goal stays."""
        return self.goal.slo.ttft_s + self.answers[1] * self.goal.slo.tpot_s

    def share(self, trace: RequestTrace, rate: float, skipped: int = 0) -> float:
        """How many of ``trace`` meet both limits at ``rate``, without the first ``skipped``."""
        offered = trace.at_rate(rate)
        until_s = offered.duration_s + self.service_s
        result = simulate(offered, model_candidate(self.candidate, _BASE), until_s=until_s)
        return float(met(result, self.goal.slo)[skipped:].mean())


@st.composite
def worlds(draw: st.DrawFn) -> World:
    step = draw(_steps())
    prefixes = draw(st.sampled_from([0, 0, 1, 3]))
    prefix_parts = draw(st.integers(1, 8)) if prefixes else 0
    prompts = draw(st.sampled_from([(1, 30), (30, 30), (20, 100), (100, 100), (2, 300)]))
    answers = draw(st.sampled_from([(1, 1), (1, 2), (1, 20), (20, 20), (5, 60), (40, 40)]))
    longest = prompts[1] + answers[1] + prefix_parts * _PART
    shape = ParallelShape(1, draw(st.sampled_from([1, 1, 2])))
    kv_tokens = (longest + _BLOCK) * draw(st.sampled_from([1, 2, 5, 50]))
    kv_tokens -= kv_tokens % (_BLOCK * shape.num_ranks)
    profile = profile_of_steps(step, shape, kv_tokens + 2 * _BLOCK, draw(_transfers()))
    on = Accelerators(profile, 4)
    seqs = draw(st.integers(1, 16))
    limits = Limits(seqs, max(seqs, draw(st.sampled_from([8, 32, 128]))))
    decode = PoolChoice(on, draw(st.sampled_from([1, 1, 2])), shape, limits)
    prefill = PoolChoice(on, draw(st.sampled_from([1, 1, 2])), shape, limits)
    candidate = Candidate(prefill if draw(st.booleans()) else None, (decode,))
    goal = Goal(draw(_limits_of(step, longest)), draw(st.sampled_from([50.0, 90.0, 100.0])))
    return World(candidate, goal, prompts, answers, prefixes, prefix_parts, draw(st.booleans()))


@st.composite
def _steps(draw: st.DrawFn) -> StepModel:
    """Some 1 ms; with a knee as weights that are read make it, or without."""
    fixed, row = draw(st.integers(100, 2000)), draw(st.sampled_from([1, 10, 50]))
    knee = draw(st.sampled_from([2, 16, 100]))
    points = [(1, fixed), (knee, fixed + row), (2 * knee, fixed + row * (1 + knee))]
    return StepModel(
        RowCurve(tuple((rows, time * _MICROSECOND) for rows, time in points)),
        per_sampled=draw(st.sampled_from([0, 20])) * _MICROSECOND,
        per_prefill_pair=draw(st.sampled_from([0, 10**7, 10**9])),
        per_decode_context=draw(st.sampled_from([0, 10**7, 10**9])),
    )


def _transfers() -> st.SearchStrategy[TransferModel]:
    return st.builds(
        TransferModel,
        st.sampled_from([1, 300 * _MICROSECOND, 5000 * _MICROSECOND]),
        st.sampled_from([1, 5 * _MICROSECOND, 100 * _MICROSECOND]),
    )


@st.composite
def _limits_of(draw: st.DrawFn, step: StepModel, longest: int) -> Slo:
    """From what few requests meet even alone to what only an overload misses."""
    prompt = step.time(StepWork(longest, 1, longest * longest // 2, 0, 0))
    token = step.time(StepWork(1, 1, 0, 1, longest))
    patience = st.sampled_from([0.8, 1.2, 3.0, 6.0, 12.0])
    return Slo(draw(patience) * prompt * 1e-15 + 1e-3, draw(patience) * token * 1e-15)


def profile_of_steps(
    step: StepModel, shape: ParallelShape, kv_tokens: int, transfer: TransferModel
) -> LatencyProfile:
    """Of one shape, and of an edge between two of it."""
    return LatencyProfile(
        origin=Origin.MODELLED,
        hardware="drawn",
        model="any",
        model_hash="",
        dtype="float32",
        created="2026-11-21",
        max_positions=4096,
        weight_bytes=1,
        kv_bytes_per_token=8,
        message_s=1e-4,
        request_s=1e-4,
        engines=(EngineProfile(shape, 1, 1.0, step, kv_tokens),),
        transfers=(TransferProfile("any", shape, shape, transfer),),
        device="cuda",
    )
