"""When requests arrive: Poisson, constant, replayed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidField
from tuner.load.arrivals import ArrivalKind, draw_arrivals, replay_arrivals


def poisson(rate: float, duration_s: float, seed: int) -> np.ndarray:
    return draw_arrivals(ArrivalKind.POISSON, rate, duration_s, np.random.default_rng(seed))


def test_poisson_arrivals_have_the_mean_and_variance_of_the_process() -> None:
    counts = np.array([len(poisson(4.0, 50.0, seed)) for seed in range(400)])
    # Mean and variance are both 200; the bounds are five standard errors.
    assert abs(counts.mean() - 200) < 5 * np.sqrt(200 / 400)
    assert abs(counts.var() - 200) < 5 * 200 * np.sqrt(2 / 400)


def test_gaps_between_poisson_arrivals_are_exponential() -> None:
    gaps = np.diff(poisson(10.0, 2_000.0, 1))
    expected = [1 - np.exp(-10.0 * x) for x in (0.02, 0.1, 0.3)]
    measured = [(gaps < x).mean() for x in (0.02, 0.1, 0.3)]
    assert measured == pytest.approx(expected, abs=0.02)


@given(rate=st.floats(0.01, 100), duration_s=st.floats(0.01, 50), seed=st.integers(0, 2**32))
def test_arrivals_lie_in_the_window_in_order_and_follow_the_seed(
    rate: float, duration_s: float, seed: int
) -> None:
    times = poisson(rate, duration_s, seed)
    assert np.array_equal(times, poisson(rate, duration_s, seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))


def test_constant_arrivals_keep_an_even_beat() -> None:
    generator = np.random.default_rng(0)
    times = draw_arrivals(ArrivalKind.CONSTANT, 2.0, 2.1, generator)
    assert times.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_more_requests_than_anybody_could_send_are_refused() -> None:
    with pytest.raises(InvalidField, match="--rate"):
        poisson(1e12, 60.0, 0)


def test_a_replayed_trace_starts_at_zero_and_runs_faster() -> None:
    assert replay_arrivals(np.array([100.0, 101.0, 104.0]), 2.0).tolist() == [0.0, 0.5, 2.0]
