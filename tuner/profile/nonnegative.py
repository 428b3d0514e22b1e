"""Least squares with coefficients that are not negative: times don't fall when work is added."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_TOLERANCE = 1e-10


def nonnegative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """x ≥ 0 that makes |matrix @ x − target| smallest. ``matrix``: [rows, columns].

    The active-set algorithm of Lawson and Hanson, "Solving Least Squares Problems" (1974),
    chapter 23, on the normal equations: there are few columns, and fits come by the thousand.
    """
    # Columns of one size: pairs of tokens come in millions, sequences in dozens.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    solution: Floats = _solve(scaled.T @ scaled, scaled.T @ target) / scale
    return solution


def _solve(gram: Floats, moment: Floats) -> Floats:
    """``gram``: products of the columns with each other, ``moment``: with the target."""
    columns = len(moment)
    everything = np.ones(columns, dtype=np.bool_)
    unbound = _best(gram, moment, everything)
    if (unbound >= 0).all():
        return unbound
    x, free = np.zeros(columns), ~everything
    tolerance = _TOLERANCE * max(1.0, float(np.abs(moment).max(initial=0.0)))
    # Each turn frees one column; the bound only guards against cycling by rounding.
    for _ in range(10 * columns):
        gradient = moment - gram @ x
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free[best] = True
        x = _back_to_feasible(gram, moment, x, free)
    return x


def _back_to_feasible(gram: Floats, moment: Floats, x: Floats, free: Flags) -> Floats:
    """The best x with only the ``free`` columns; those that would fall below 0 are fixed again."""
    while True:
        wanted = _best(gram, moment, free)
        below = free & (wanted <= 0)
        if not below.any():
            return wanted
        step = np.min(x[below] / np.maximum(x[below] - wanted[below], 1e-300))
        x = x + step * (wanted - x)
        free &= x > _TOLERANCE
        x[~free] = 0.0


def _best(gram: Floats, moment: Floats, free: Flags) -> Floats:
    """Least squares with the ``free`` columns alone, of any sign; 0 elsewhere."""
    x = np.zeros(len(moment))
    chosen = np.flatnonzero(free)
    inner = gram[np.ix_(chosen, chosen)]
    try:
        x[chosen] = np.linalg.solve(inner, moment[chosen])
    except np.linalg.LinAlgError:  # Columns that say the same.
        x[chosen] = np.linalg.lstsq(inner, moment[chosen], rcond=None)[0]
    return x
