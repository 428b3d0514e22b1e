"""Small clusters with round times, and traces, for tests of the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from core.latency_profile import EngineProfile, RowCurve, StepModel, TransferModel
from core.request import Role
from core.shards import ParallelShape
from router.placement import Disaggregation
from router.routing.policies.policy import PolicyName
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import TokenGaps
from tuner.simulate.simulator import Simulation

MICROSECOND = 10**9
BLOCK_SIZE = 4

# 1 ms for a step and 10 µs for each row, 20 µs for a draw, 2 µs for a pair, 1 µs for context.
STEP = StepModel(
    RowCurve(((0, 1000 * MICROSECOND), (1000, 11_000 * MICROSECOND))),
    per_sampled=20 * MICROSECOND,
    per_prefill_pair=2 * MICROSECOND,
    per_decode_context=MICROSECOND,
)
# 300 µs for a batch and 5 µs for each token.
TRANSFER = TransferModel(300 * MICROSECOND, 5 * MICROSECOND)


def workers(
    role: Role,
    count: int,
    *,
    num_blocks: int = 200,
    max_num_seqs: int = 8,
    budget: int = 64,
    pipeline: int = 1,
) -> WorkerModel:
    engine = EngineProfile(ParallelShape(1, pipeline), 1, 1.0, STEP, num_blocks * BLOCK_SIZE)
    return WorkerModel(role, count, engine, num_blocks, max_num_seqs, budget)


def cluster(*groups: WorkerModel, message_s: float = 1e-4, request_s: float = 1e-3) -> ClusterModel:
    return ClusterModel(
        groups,
        BLOCK_SIZE,
        TRANSFER,
        message_s=message_s,
        request_s=request_s,
        ttft_s=1.0,
        # The smallest prompts would go to D alone.
        disaggregation=Disaggregation.PREFER,
    )


def trace(*requests: tuple[float, int, int], shared: list[list[int]] | None = None) -> RequestTrace:
    """(arrival in seconds, prompt tokens, output tokens) each; parts of 8 tokens are shared."""
    arrivals, prompts, outputs = zip(*requests, strict=True)
    return RequestTrace(
        "test",
        np.array(arrivals, dtype=np.float64),
        np.array(prompts, dtype=np.int32),
        np.array(outputs, dtype=np.int32),
        [np.array(ids, dtype=np.int32) for ids in shared or []],
        part_tokens=8,
    )


def expanded(gaps: TokenGaps) -> np.ndarray:
    """Every gap by itself, sorted; seconds."""
    columns = zip(gaps.first_s, gaps.growth_s, gaps.steps, gaps.weights, strict=True)
    each = [
        np.repeat(first + growth * np.arange(steps), weight)
        for first, growth, steps, weight in columns
    ]
    return np.sort(np.concatenate(each)) if each else np.empty(0)


def check_nothing_is_left(simulation: Simulation) -> None:
    """Every worker is idle, and every block is free or cache."""
    for worker in simulation.workers:
        worker.brain.validate()
        pool = worker.brain.pool
        assert worker.idle, worker.name
        assert pool.num_leased == pool.num_quarantined == 0
        assert pool.num_free + pool.num_cached == pool.num_blocks


@st.composite
def traces(draw: st.DrawFn) -> RequestTrace:
    """Up to 20 requests within a fraction of a second, many at the same moment."""
    count = draw(st.integers(1, 20))
    times = st.sampled_from([0.0, 0.0, 0.001, 0.0015, 0.003, 0.02, 0.0201, 0.1, 0.5])
    arrivals = np.sort(np.array([draw(times) for _ in range(count)]))
    lengths = st.integers(1, 60) | st.integers(1, 200)
    return trace(
        *((float(at), draw(lengths), draw(st.integers(1, 60))) for at in arrivals),
        shared=[draw(st.lists(st.integers(0, 2), max_size=4)) for _ in range(count)],
    )


@st.composite
def clusters(draw: st.DrawFn) -> ClusterModel:
    """Up to 6 workers, some with hardly any blocks."""
    blocks = st.sampled_from([12, 20, 40, 200])
    sequences = st.integers(1, 6)
    stages = st.sampled_from([1, 1, 1, 2, 3])

    def group(role: Role, least: int) -> WorkerModel:
        return workers(
            role,
            draw(st.integers(least, 2)),
            num_blocks=draw(blocks),
            max_num_seqs=draw(sequences),
            budget=draw(st.sampled_from([6, 16, 64])),
            pipeline=draw(stages),
        )

    if draw(st.booleans()):
        groups = [group(Role.PREFILL, 1), group(Role.DECODE, 1)]
    else:
        groups = [group(Role.MIXED, 1)]
    model = cluster(
        *groups,
        message_s=draw(st.sampled_from([0.0, 1e-4, 0.003])),
        request_s=draw(st.sampled_from([0.0, 1e-3])),
    )
    policies = st.just(PolicyName.KV_AWARE) | st.sampled_from(PolicyName)
    modes = st.sampled_from([Disaggregation.PREFER, Disaggregation.AUTO])
    return replace(model, policy=draw(policies), disaggregation=draw(modes))
