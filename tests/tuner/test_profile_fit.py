"""Fitting on made-up measurements: known coefficients come back, wrong models are found out."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.errors import InvalidField
from core.latency_profile import RowCurve, StepModel, StepWork, chunk_pairs, femtoseconds
from tuner.profile.fit import (
    MeasuredStep,
    MeasuredTransfer,
    fit_line,
    fit_steps,
    fit_transfer,
    fit_warning,
    worst_points,
)
from tuner.profile.nonnegative import nonnegative_least_squares

# Flat while weights are read, then as steep as arithmetic makes it.
TRUTH = StepModel(
    RowCurve(
        (
            (1, femtoseconds(12e-3)),
            (32, femtoseconds(14e-3)),
            (512, femtoseconds(134e-3)),
        )
    ),
    per_sampled=femtoseconds(90e-6),
    per_prefill_pair=femtoseconds(40e-9),
    per_decode_context=femtoseconds(1.5e-6),
)


def works() -> list[StepWork]:
    """Chunks after prefixes, with and without a draw; batches; both at once."""
    chunks = [
        StepWork(count, draws, chunk_pairs(start, count), 0, 0)
        for count, start, draws in itertools.product(
            (16, 32, 64, 128, 256, 512), (0, 512, 1500), (0, 1)
        )
    ]
    decodes = [
        StepWork(batch, batch, 0, batch, batch * context)
        for batch, context in itertools.product((1, 2, 4, 8, 16, 32), (64, 512, 1500))
    ]
    mixed = [StepWork(count + 8, 9, chunk_pairs(0, count), 8, 8 * 300) for count in (64, 128, 248)]
    return chunks + decodes + mixed


def measured(
    time: Callable[[StepWork], float], noise: float = 0.0, seed: int = 0
) -> list[MeasuredStep]:
    random = np.random.default_rng(seed)
    return [
        MeasuredStep(f"point {i}", work, time(work) * float(random.uniform(1 - noise, 1 + noise)))
        for i, work in enumerate(works())
    ]


def true_seconds(work: StepWork) -> float:
    return TRUTH.time(work) / 1e15


def test_known_coefficients_come_back() -> None:
    model, error = fit_steps(measured(true_seconds))
    assert error.worst < 1e-3
    for name in ("per_sampled", "per_prefill_pair", "per_decode_context"):
        assert getattr(model, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3)
    assert 32 in [rows for rows, _ in model.rows.points], "the curve bends where the truth does"
    for work in works():
        assert model.time(work) == pytest.approx(TRUTH.time(work), rel=1e-3)


@pytest.mark.thorough
@settings(max_examples=6)
@given(st.integers(0, 2**32), st.floats(0.0, 0.08))
def test_noise_moves_predictions_by_no_more_than_the_noise(seed: int, noise: float) -> None:
    model, error = fit_steps(measured(true_seconds, noise, seed))
    assert error.median <= noise + 1e-3
    for work in works():
        assert model.time(work) == pytest.approx(TRUTH.time(work), rel=2 * noise + 1e-3)


@settings(max_examples=6)
@given(
    st.floats(1e-4, 1e-1),
    st.floats(0, 1e-3),
    st.floats(1e-12, 1e-6),
    st.floats(1e-9, 1e-5),
)
def test_any_linear_engine_is_found(
    fixed: float, per_row: float, per_pair: float, per_context: float
) -> None:
    def time(work: StepWork) -> float:
        attention = per_pair * work.prefill_pairs + per_context * work.decode_context
        return fixed + per_row * work.rows + attention

    _, error = fit_steps(measured(time))
    assert error.worst < 1e-3


def test_times_are_whole_and_never_negative() -> None:
    # Drawing makes this engine faster: no model of ours can say so.
    model, error = fit_steps(measured(lambda work: 0.05 - 1e-3 * work.sampled + 1e-4 * work.rows))
    numbers = [model.per_sampled, model.per_prefill_pair, model.per_decode_context]
    numbers += [value for point in model.rows.points for value in point]
    assert all(type(number) is int and number >= 0 for number in numbers)
    assert error.p95 > 0.05


def test_an_engine_that_the_model_can_not_describe_gets_a_bad_error() -> None:
    def odd(work: StepWork) -> float:
        return true_seconds(work) * (3.0 if (work.rows + work.decode_context) % 3 else 1.0)

    steps = measured(odd)
    _, error = fit_steps(steps)
    assert error.median > 0.2
    said = fit_warning(error)
    assert said is not None
    assert error.worst_point in said
    worst = worst_points([step.name for step in steps], error)
    assert worst[0][0] == error.worst_point
    assert len(worst) == 3


def test_errors_are_of_points_that_the_fit_had_not_seen() -> None:
    """Pure noise: a curve through all points would have no error on those it was fitted to."""
    random = np.random.default_rng(1)
    steps = [
        MeasuredStep(f"{rows} rows", StepWork(rows, 0, 0, 0, 0), float(random.uniform(0.1, 1.0)))
        for rows in range(1, 25)
    ]
    model, error = fit_steps(steps)
    again = [abs(model.time(step.work) / 1e15 / step.seconds - 1) for step in steps]
    assert error.median > 0.2
    assert float(np.mean(np.square(again))) < float(
        np.mean(np.square(1 / np.array(error.residuals) - 1))
    )


def test_residuals_are_measured_over_fitted_in_the_order_of_the_points() -> None:
    steps = measured(true_seconds)
    slow = MeasuredStep("slow", steps[7].work, 2 * steps[7].seconds)
    _, error = fit_steps([*steps[:7], slow, *steps[8:]])
    assert len(error.residuals) == len(steps)
    assert int(np.argmax(error.residuals)) == 7
    assert error.worst_point == "slow"
    assert error.residuals[7] == pytest.approx(2.0, rel=0.1)


def test_a_good_fit_needs_no_warning() -> None:
    _, error = fit_steps(measured(true_seconds, noise=0.02))
    assert fit_warning(error) is None


def test_too_few_points_are_no_fit() -> None:
    with pytest.raises(InvalidField, match="at least 8"):
        fit_steps(measured(true_seconds)[:7])
    same_rows = [MeasuredStep("same", StepWork(4, 4, 0, 4, i), 0.1) for i in range(10)]
    with pytest.raises(InvalidField, match="different numbers of rows"):
        fit_steps(same_rows)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidField, match="above 0"):
            fit_steps([MeasuredStep("none", step.work, seconds) for step in measured(true_seconds)])
        with pytest.raises(InvalidField, match="above 0"):
            fit_transfer([MeasuredTransfer(size, seconds) for size in (1, 2, 4)])


def test_one_step_alone_may_have_other_rows() -> None:
    steps = [MeasuredStep("same", StepWork(4, 4, 0, 4, i), 0.1) for i in range(10)]
    steps.append(MeasuredStep("other", StepWork(64, 4, 0, 4, 5), 0.7))
    model, error = fit_steps(steps)
    assert model.time(StepWork(64, 4, 0, 4, 5)) == pytest.approx(femtoseconds(0.7), rel=1e-3)
    # Those that were fitted without it took the curve for level.
    assert error.worst_point == "other"
    assert max(error.residuals) == pytest.approx(7.0, rel=1e-3)


@given(st.floats(0, 1e-2), st.floats(1e-9, 1e-4))
def test_transfers_are_a_fixed_part_and_one_for_each_token(fixed: float, per_token: float) -> None:
    sizes = (16, 32, 64, 256, 1024)
    transfers = [MeasuredTransfer(tokens, fixed + per_token * tokens) for tokens in sizes]
    model, error = fit_transfer(transfers)
    assert error.worst < 1e-3
    assert model.time(500) == pytest.approx(femtoseconds(fixed + 500 * per_token), rel=1e-3)


def test_transfers_of_one_size_say_nothing_of_others() -> None:
    with pytest.raises(InvalidField, match="three sizes"):
        fit_transfer([MeasuredTransfer(64, 0.1)] * 5)


def test_a_line_does_not_fall() -> None:
    assert fit_line([1, 8, 32], [1.1, 1.8, 4.2]) == pytest.approx((1.0, 0.1))
    fixed, slope = fit_line([1, 8, 32], [3.0, 2.0, 1.0])
    assert (fixed > 0, slope) == (True, 0.0)


@settings(max_examples=examples(50))
@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(0, 20))
def test_no_nonnegative_change_makes_least_squares_better(
    seed: int, columns: int, more: int
) -> None:
    """The conditions of Karush, Kuhn and Tucker, which only the optimum meets."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(columns + more, columns)) * 10.0 ** random.integers(-3, 4, columns)
    target = random.normal(size=columns + more)
    x = nonnegative_least_squares(matrix, target)
    gradient = matrix.T @ (matrix @ x - target) / np.linalg.norm(matrix, axis=0)
    assert (x >= 0).all()
    assert (gradient > -1e-6).all(), "raising something would help"
    assert np.abs(gradient[x > 0]).max(initial=0.0) < 1e-6, "what is used is used to the full"
