"""A step lasts from plan to result; its own time starts when the one before it is complete."""

from __future__ import annotations

from core.step_clock import StepClock, StepTime


def test_one_step_at_a_time() -> None:
    clock = StepClock()
    clock.planned(1.0)
    assert clock.completed(1.5) == StepTime(total=0.5, own=0.5)
    clock.planned(9.0)
    assert clock.completed(9.25) == StepTime(total=0.25, own=0.25)


def test_own_times_of_overlapping_steps_add_up_to_the_busy_time() -> None:
    clock = StepClock()
    for planned_at in (1.0, 2.0, 3.0):
        clock.planned(planned_at)
    times = [clock.completed(now) for now in (4.0, 7.0, 8.0)]
    assert [time.total for time in times] == [3.0, 5.0, 5.0]
    assert sum(time.own for time in times) == 8.0 - 1.0
