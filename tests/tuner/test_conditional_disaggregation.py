"""Prompts that D computes alone where that is sooner: goodput does not fall, and mostly rises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated_clusters import cluster, workers

from core.latency_profile import RowCurve, StepModel, TransferModel
from core.request import Role
from router.placement import Disaggregation
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate

US = 10**9
# About a CPU core with a model of 135 million parameters.
STEP = StepModel(
    RowCurve(((1, 14_000 * US), (16, 17_000 * US), (32, 24_000 * US), (256, 80_000 * US))),
    per_sampled=200 * US,
    per_prefill_pair=20 * 10**6,
    per_decode_context=400 * 10**6,
)
TRANSFER = TransferModel(300 * US, 3 * US)


def group(role: Role, count: int) -> WorkerModel:
    model = workers(role, count, num_blocks=2048, max_num_seqs=32, budget=256)
    return replace(model, engine=replace(model.engine, step=STEP))


def pools(prefill: int, decode: int, mode: Disaggregation) -> ClusterModel:
    model = cluster(group(Role.PREFILL, prefill), group(Role.DECODE, decode))
    return replace(model, block_size=16, transfer=TRANSFER, disaggregation=mode)


def mixed_lengths(count: int, rate: float) -> RequestTrace:
    """Four of five prompts around 200 tokens, the others around 1,500; answers around 100."""
    random = np.random.default_rng(1)
    short = random.integers(150, 251, count)
    prompts = np.where(random.random(count) < 0.8, short, random.integers(1300, 1701, count))
    return RequestTrace(
        "mixed lengths",
        np.cumsum(random.exponential(1 / rate, count)),
        prompts.astype(np.int32),
        random.integers(80, 121, count).astype(np.int32),
    )


def in_time(result: SimulationResult) -> float:
    """Share of the requests that met both limits."""
    return float(((result.ttft_s <= 1.0) & ~(result.tpot_s > 0.05)).mean())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("prefill", "decode", "rate"), [(1, 1, 1.5), (1, 1, 3.0), (2, 2, 4.0), (1, 3, 4.0)]
)
def test_goodput_does_not_fall(prefill: int, decode: int, rate: float) -> None:
    trace = mixed_lengths(250, rate)
    handed, free = (
        simulate(trace, pools(prefill, decode, mode))
        for mode in (Disaggregation.PREFER, Disaggregation.AUTO)
    )
    assert in_time(free) >= in_time(handed)
    assert free.ttft_s.mean() <= handed.ttft_s.mean()
    assert np.nanmax(free.tpot_s) < 0.05


@pytest.mark.thorough
def test_where_prefill_workers_are_too_few_decode_workers_help() -> None:
    trace = mixed_lengths(250, 8.0)
    handed = simulate(trace, pools(1, 3, Disaggregation.PREFER))
    free = simulate(trace, pools(1, 3, Disaggregation.AUTO))
    assert in_time(handed) < 0.9 < 0.97 < in_time(free)
    alone = free.prefill_worker == -1
    assert 0.1 < alone.mean() < 0.9
    assert (handed.prefill_worker != -1).all()
