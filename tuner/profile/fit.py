"""From measured steps and transfers to models of their time, and how far those hold. Pure.

Relative errors count, so that a step of 5 ms matters as much as one of 500. How many straight
pieces the curve over rows gets is decided by cross-validation. The errors told are of points that
the whole fit, that decision included, had not seen (nested cross-validation).
Does not cover: which points (``tuner.profile.points``), measuring (``cluster.profiling``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from core.errors import InvalidField
from core.latency_profile import (
    FitError,
    RowCurve,
    StepModel,
    StepWork,
    TransferModel,
    femtoseconds,
)
from tuner.profile.nonnegative import Floats, nonnegative_least_squares

# Above that a fit is called bad.
ACCEPTED_P95 = 0.15
# Coefficients that have to be told apart, and some points to check them with.
LEAST_POINTS = 8
FOLDS = 5
# A knot has to lower the error by this share of it: otherwise noise would buy some.
_WORTH_A_KNOT = 0.03
_MAX_KNOTS = 8

Indices = npt.NDArray[np.intp]
Point = TypeVar("Point")


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """``name``: for people. ``seconds``: from the start of this step to that of the next one."""

    name: str
    work: StepWork
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredTransfer:
    """``seconds`` from the announcement of a batch of ``tokens`` tokens to its verification."""

    tokens: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.tokens} tokens"


def fit_steps(steps: Sequence[MeasuredStep]) -> tuple[StepModel, FitError]:
    """Raises ``InvalidField`` for fewer than ``LEAST_POINTS``, or all of the same rows."""
    _check([step.seconds for step in steps])
    if len({step.work.rows for step in steps}) < 2:
        raise InvalidField("points", len(steps), "steps of different numbers of rows are needed")
    predicted = _unseen(steps, _fit_step_model, lambda model, step: model.time(step.work) / 1e15)
    measured = np.array([step.seconds for step in steps])
    return _fit_step_model(steps), _error([s.name for s in steps], measured, predicted)


def fit_transfer(transfers: Sequence[MeasuredTransfer]) -> tuple[TransferModel, FitError]:
    """Raises ``InvalidField`` for fewer than three sizes."""
    if len({one.tokens for one in transfers}) < 3:
        raise InvalidField("points", len(transfers), "transfers of three sizes are needed")
    _check_times([one.seconds for one in transfers])
    predicted = _unseen(transfers, _fit_transfer_model, lambda m, one: m.time(one.tokens) / 1e15)
    measured = np.array([one.seconds for one in transfers])
    names = [one.name for one in transfers]
    return _fit_transfer_model(transfers), _error(names, measured, predicted)


def fit_line(amounts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """(fixed, per amount) with the smallest relative errors, neither negative."""
    matrix = np.stack([np.ones(len(amounts)), np.array(amounts, dtype=np.float64)], axis=1)
    fixed, slope = _relative_least_squares(matrix, np.array(seconds, dtype=np.float64))
    return float(fixed), float(slope)


def worst_points(names: Sequence[str], error: FitError, count: int = 3) -> list[tuple[str, float]]:
    """Those that fit worst, with measured / fitted; the worst first."""
    pairs = list(zip(names, error.residuals, strict=True))
    return sorted(pairs, key=lambda pair: abs(1 / pair[1] - 1), reverse=True)[:count]


def fit_warning(error: FitError) -> str | None:
    """What people have to know of a bad fit."""
    if error.p95 <= ACCEPTED_P95:
        return None
    return (
        f"1 of 20 points is off by {error.p95:.0%} or more (accepted: {ACCEPTED_P95:.0%}), "
        f"worst {error.worst:.0%} at {error.worst_point}: what is computed from this profile is "
        "no better; measure again with nothing else running, or with --thorough"
    )


def _fit_step_model(steps: Sequence[MeasuredStep]) -> StepModel:
    measured = np.array([step.seconds for step in steps])
    knots = _choose_knots(steps, measured)
    coefficients = _relative_least_squares(_step_matrix(steps, knots), measured)
    *curve, sampled, pair, context = (femtoseconds(value) for value in coefficients)
    heights = np.cumsum(np.array(curve, dtype=object))
    points = tuple((rows, int(height)) for rows, height in zip(knots, heights, strict=True))
    return StepModel(RowCurve(points), sampled, pair, context)


def _fit_transfer_model(transfers: Sequence[MeasuredTransfer]) -> TransferModel:
    fixed, slope = fit_line([one.tokens for one in transfers], [one.seconds for one in transfers])
    return TransferModel(femtoseconds(fixed), femtoseconds(slope))


def _choose_knots(steps: Sequence[MeasuredStep], measured: Floats) -> list[int]:
    """Rows at which the curve may bend: the two ends, and as many between as pay, best first."""
    rows = sorted({step.work.rows for step in steps})
    # Of one number of rows alone nobody knows how the curve goes on: it is level.
    knots = [rows[0], max(rows[-1], rows[0] + 1)]
    error = _knots_error(steps, measured, knots)
    while len(knots) < _MAX_KNOTS:
        wider = [sorted([*knots, row]) for row in rows if row not in knots]
        errors = [_knots_error(steps, measured, candidate) for candidate in wider]
        if not errors or min(errors) > error * (1 - _WORTH_A_KNOT):
            break
        error = min(errors)
        knots = wider[errors.index(error)]
    return knots


def _knots_error(steps: Sequence[MeasuredStep], measured: Floats, knots: Sequence[int]) -> float:
    """Root of the mean squared relative error of points that were not fitted to."""
    matrix = _step_matrix(steps, knots)
    predicted = np.empty(len(steps))
    for seen, unseen in _folds(len(steps)):
        coefficients = _relative_least_squares(matrix[seen], measured[seen])
        predicted[unseen] = matrix[unseen] @ coefficients
    return float(np.sqrt(np.mean((predicted / measured - 1) ** 2)))


def _step_matrix(steps: Sequence[MeasuredStep], knots: Sequence[int]) -> Floats:
    """[steps, columns]: the curve's height at the first knot, how far it has risen in each piece,
    drawn tokens, prefill pairs, decode context."""
    works = [step.work for step in steps]
    rows = np.array([work.rows for work in works], dtype=np.float64)
    columns = [np.ones(len(works))]
    for index in range(len(knots) - 1):
        low, high = knots[index], knots[index + 1]
        risen = np.maximum(0.0, (rows - low) / (high - low))
        columns.append(risen if index == len(knots) - 2 else np.minimum(1.0, risen))
    columns.append(np.array([work.sampled for work in works], dtype=np.float64))
    columns.append(np.array([work.prefill_pairs for work in works], dtype=np.float64))
    columns.append(np.array([work.decode_context for work in works], dtype=np.float64))
    return np.stack(columns, axis=1)


def _relative_least_squares(matrix: Floats, measured: Floats) -> Floats:
    return nonnegative_least_squares(matrix / measured[:, None], np.ones(len(measured)))


Model = TypeVar("Model")


def _unseen(
    points: Sequence[Point],
    fit: Callable[[Sequence[Point]], Model],
    predict: Callable[[Model, Point], float],
) -> Floats:
    """Seconds for each point, by models that were fitted without it."""
    predicted = np.empty(len(points))
    for seen, unseen in _folds(len(points)):
        model = fit([points[i] for i in seen])
        predicted[unseen] = [predict(model, points[i]) for i in unseen]
    return predicted


def _folds(count: int) -> Iterator[tuple[Indices, Indices]]:
    """(seen, unseen) parts of 0 … count − 1; each number is unseen once."""
    order = np.random.default_rng(0).permutation(count)
    for unseen in np.array_split(order, min(FOLDS, count)):
        yield np.setdiff1d(order, unseen), unseen


def _error(names: Sequence[str], measured: Floats, predicted: Floats) -> FitError:
    predicted = np.maximum(predicted, 1e-15)
    errors = np.abs(predicted / measured - 1)
    worst = int(np.argmax(errors))
    return FitError(
        median=float(np.median(errors)),
        p95=float(np.percentile(errors, 95)),
        worst=float(errors[worst]),
        residuals=tuple((measured / predicted).tolist()),
        worst_point=names[worst],
    )


def _check(seconds: Sequence[float]) -> None:
    if len(seconds) < LEAST_POINTS:
        raise InvalidField("points", len(seconds), f"at least {LEAST_POINTS} are needed for a fit")
    _check_times(seconds)


def _check_times(seconds: Sequence[float]) -> None:
    wrong = [value for value in seconds if not 0 < value < math.inf]
    if wrong:
        raise InvalidField("points", wrong[0], "must all be seconds above 0")
