"""A point that was disturbed for a moment is found out; a fit that is really bad stays one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.latency_profile import StepWork
from tuner.profile.fit import MeasuredStep, fit_steps
from tuner.profile.recheck import MOST, recheck


def seconds_of(batch: int, context: int) -> float:
    return 12e-3 + 0.4e-3 * batch + 1.5e-6 * batch * context


WORKS = [
    StepWork(batch, batch, 0, batch, batch * context)
    for batch in (1, 2, 4, 6, 8, 10, 12, 16, 24, 32)
    for context in (64, 512, 1024)
]
STEPS = [
    MeasuredStep(
        f"{w.rows} × {w.decode_context}", w, seconds_of(w.rows, w.decode_context // w.rows)
    )
    for w in WORKS
]


def with_time(factor: float, *places: int) -> list[MeasuredStep]:
    return [
        replace(step, seconds=step.seconds * (factor if place in places else 1))
        for place, step in enumerate(STEPS)
    ]


def rechecked(
    steps: list[MeasuredStep], measure: Callable[[int], float]
) -> tuple[dict[int, float], list[int]]:
    """What is believed anew, and what was measured again."""
    asked: list[int] = []

    def asking(index: int) -> float:
        asked.append(index)
        return measure(index)

    return dict(recheck(steps, asking)), asked


@pytest.mark.parametrize("factor", [1.76, 0.5])
def test_one_wild_point_is_measured_again_and_the_middle_of_three_counts(factor: float) -> None:
    wild = with_time(factor, 11)
    assert fit_steps(wild)[1].worst > 0.4
    times = iter([1.02 * STEPS[11].seconds, 0.99 * STEPS[11].seconds])
    believed, asked = rechecked(wild, lambda index: next(times))
    assert asked == [11, 11]
    assert believed == {11: pytest.approx(STEPS[11].seconds, rel=0.03)}


def test_a_point_that_is_so_again_stays_and_its_error_is_told() -> None:
    wild = with_time(1.76, 11)
    believed, asked = rechecked(wild, lambda index: 1.05 * wild[index].seconds)
    assert (believed, asked) == ({}, [11])
    assert fit_steps(wild)[1].worst > 0.4


def test_points_that_fit_are_not_measured_again() -> None:
    for steps in (STEPS, with_time(1.1, 3, 8), STEPS[:5], STEPS[:3]):
        assert rechecked(steps, lambda index: 0.0) == ({}, [])


def test_no_more_than_a_few_are_measured_again() -> None:
    wild = with_time(2.0, 1, 6, 12, 17, 23, 28)
    believed, asked = rechecked(wild, lambda index: STEPS[index].seconds)
    assert len(set(asked)) == MOST
    assert len(asked) <= 2 * MOST
    assert all(seconds == STEPS[index].seconds for index, seconds in believed.items())
