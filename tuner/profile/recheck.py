"""Points that are measured again before they are believed. Pure.

A machine that is disturbed for a moment leaves one point far from where all others put it. Measured
again it shows whether it was the moment, then the middle of three times counts, or whether it is
the fit that is off: then the point stays, and the fit's error tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from tuner.profile.fit import ACCEPTED_P95, LEAST_POINTS, MeasuredStep, fit_steps

# Of one engine. More far points than that are no moment's.
MOST = 3
# Far is what is off by more than is accepted of a fit, and by so many times the median error.
_TIMES_THE_MEDIAN = 4
# Two times of a point that differ by less confirm each other.
_SAME = 0.10


def recheck(
    steps: Sequence[MeasuredStep], measure: Callable[[int], float]
) -> Iterator[tuple[int, float]]:
    """Index and believed seconds of each of ``steps`` whose time was not confirmed. ``measure``
    takes the time of one of them again."""
    known, looked_at = list(steps), set[int]()
    while len(looked_at) < MOST and (index := _farthest(known, looked_at)) is not None:
        looked_at.add(index)
        times = [known[index].seconds, measure(index)]
        if max(times) <= (1 + _SAME) * min(times):
            continue
        middle = sorted([*times, measure(index)])[1]
        known[index] = replace(known[index], seconds=middle)
        yield index, middle


def _farthest(steps: Sequence[MeasuredStep], but: Collection[int]) -> int | None:
    """The one that is farthest from a fit to others; None if none is far."""
    if len(steps) < LEAST_POINTS or len({step.work.rows for step in steps}) < 2:
        return None
    _, error = fit_steps(steps)
    errors = {i: abs(1 / ratio - 1) for i, ratio in enumerate(error.residuals) if i not in but}
    index = max(errors, key=errors.__getitem__)
    far = max(ACCEPTED_P95, _TIMES_THE_MEDIAN * error.median)
    return index if errors[index] > far else None
