"""Twenty thousand requests on two hundred workers: what a search for a ratio asks for again and
again. ``tests/benchmarks/bench_simulator.py`` does the same with a million on a thousand."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_clusters import check_nothing_is_left, cluster, workers

from core.latency_profile import RowCurve, StepModel
from core.request import Role
from tuner.simulate.cluster_model import WorkerModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.simulator import Simulation

WORKERS = 200


# 5 ms for a step and 20 µs for each row, 10 ns for each token of context.
STEP = StepModel(RowCurve(((0, 5 * 10**12), (1000, 25 * 10**12))), 10**10, 10**6, 10**7)


def group(role: Role, count: int) -> WorkerModel:
    model = workers(role, count, num_blocks=512, max_num_seqs=64, budget=2048)
    return replace(model, engine=replace(model.engine, step=STEP))


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        pytest.param((group(Role.MIXED, WORKERS),), 20_000, marks=pytest.mark.thorough),
        ((group(Role.PREFILL, WORKERS // 5), group(Role.DECODE, WORKERS * 4 // 5)), 400),
    ],
    ids=["mixed", "prefill and decode"],
)
def test_decisions_and_not_tokens_are_what_takes_time(
    groups: tuple[WorkerModel, ...], count: int
) -> None:
    random = np.random.default_rng(3)
    trace = RequestTrace(
        "many",
        np.cumsum(random.exponential(1 / 400, count)),
        random.integers(20, 1500, count).astype(np.int32),
        random.integers(50, 400, count).astype(np.int32),
    )
    simulation = Simulation(trace, replace(cluster(*groups), block_size=64), seed=1)
    simulation.run()
    check_nothing_is_left(simulation)
    result = simulation.result()
    assert result.failures == {}
    assert np.isfinite(result.last_token_s).all()
    assert result.gaps.steps @ result.gaps.weights == (result.output_tokens - 1).sum()
    steps = sum(worker.steps for worker in result.workers)
    assert result.decisions < 30 * count < steps
