"""Many steps at once give what the same steps one by one give, to the last femtosecond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_clusters import (
    check_nothing_is_left,
    cluster,
    clusters,
    expanded,
    trace,
    traces,
    workers,
)

from amounts import examples
from core.request import Role
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import Simulation, simulate

PER_REQUEST = (
    "first_token_s",
    "last_token_s",
    "cached_tokens",
    "attempts",
    "prefill_worker",
    "decode_worker",
)


def check_equal(one: SimulationResult, other: SimulationResult) -> None:
    for name in PER_REQUEST:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.failures == other.failures
    assert one.transferred_tokens == other.transferred_tokens
    assert expanded(one.gaps) == pytest.approx(expanded(other.gaps), rel=1e-9)
    for mine, its in zip(one.workers, other.workers, strict=True):
        for name in mine.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(mine, name), getattr(its, name), err_msg=name)


@settings(max_examples=examples(150))
@given(traces(), clusters(), st.integers(0, 3))
def test_runs_change_nothing(requests: RequestTrace, model: ClusterModel, seed: int) -> None:
    in_runs = Simulation(requests, model, seed=seed)
    in_runs.run()
    check_nothing_is_left(in_runs)
    check_equal(in_runs.result(), simulate(requests, model, seed=seed, step_by_step=True))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            cluster(workers(Role.MIXED, 3, num_blocks=60)), id="mixed", marks=pytest.mark.thorough
        ),
        pytest.param(
            cluster(
                workers(Role.PREFILL, 2, num_blocks=60), workers(Role.DECODE, 2, num_blocks=60)
            ),
            id="prefill and decode",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_full_caches_are_seen_at_the_right_moment(model: ClusterModel) -> None:
    """Conversations whose next turn finds its prefix or not, depending on what was evicted."""
    random = np.random.default_rng(5)
    requests, shared = [], []
    for turn in range(300):
        conversation = int(random.integers(12))
        requests.append((0.004 * turn, int(random.integers(20, 90)), int(random.integers(1, 60))))
        shared.append([conversation] * int(random.integers(1, 8)))
    conversations = trace(*requests, shared=shared)
    in_runs = simulate(conversations, model)
    assert in_runs.cached_tokens.sum() > 1000
    check_equal(in_runs, simulate(conversations, model, step_by_step=True))


def test_runs_are_what_makes_it_fast() -> None:
    long = trace((0.0, 20, 700))
    one = cluster(workers(Role.MIXED, 1))
    few, many = simulate(long, one), simulate(long, one, step_by_step=True)
    assert many.decisions > 700
    assert few.decisions < 60
