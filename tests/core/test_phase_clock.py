"""Seconds of the phases before the first token, from the times at which they begin and end."""

from __future__ import annotations

from core.phase_clock import Phase, PhaseClock
from core.request import AttemptKey, RequestKey

A, B = (AttemptKey(RequestKey("default", name), 1) for name in "ab")


def new_clock() -> tuple[PhaseClock, list[tuple[Phase, float]]]:
    seen: list[tuple[Phase, float]] = []
    return PhaseClock(lambda phase, seconds: seen.append((phase, seconds))), seen


def test_phases_are_told_when_the_attempt_has_come_through() -> None:
    clock, seen = new_clock()
    clock.begin(A, Phase.QUEUE, 1.0)
    clock.move(A, Phase.QUEUE, Phase.PREFILL, 3.0)
    clock.move(A, Phase.QUEUE, Phase.PREFILL, 4.0)
    clock.end(A, Phase.PREFILL, 8.0)
    assert seen == []
    clock.finish(A)
    assert seen == [(Phase.QUEUE, 2.0), (Phase.PREFILL, 5.0)]
    assert len(clock) == 0


def test_of_a_failed_attempt_nothing_is_told() -> None:
    clock, seen = new_clock()
    clock.begin(A, Phase.QUEUE, 1.0)
    clock.end(A, Phase.QUEUE, 2.0)
    clock.forget(A)
    clock.finish(A)
    assert seen == []


def test_the_last_end_counts_and_the_first_beginning_if_so_asked() -> None:
    clock, seen = new_clock()
    clock.begin(A, Phase.RESERVE, 0.0)
    clock.begin_once(A, Phase.TRANSFER, 1.0)
    clock.begin_once(A, Phase.TRANSFER, 2.0)
    clock.end(A, Phase.TRANSFER, 3.0)
    clock.end(A, Phase.TRANSFER, 5.0)
    clock.begin(A, Phase.COMMIT, 3.0)
    clock.begin(A, Phase.COMMIT, 5.0)
    clock.end(A, Phase.COMMIT, 6.0)
    clock.finish(A)
    assert seen == [(Phase.TRANSFER, 4.0), (Phase.COMMIT, 1.0)]


def test_a_phase_without_an_end_is_left_out_and_strangers_begin_nothing() -> None:
    clock, seen = new_clock()
    clock.begin(A, Phase.RESERVE, 1.0)
    clock.move(B, Phase.QUEUE, Phase.PREFILL, 1.0)
    clock.begin_once(B, Phase.COMMIT, 1.0)
    clock.end(B, Phase.PREFILL, 2.0)
    assert len(clock) == 1
    clock.finish(A)
    clock.finish(B)
    assert seen == []


def test_without_a_listener_nothing_is_kept() -> None:
    clock = PhaseClock()
    clock.begin(A, Phase.QUEUE, 1.0)
    assert len(clock) == 0
