"""When steps under way are overdue."""

from __future__ import annotations

from worker.ranks.step_limit import StepLimit


def test_an_idle_replica_is_never_late() -> None:
    limit = StepLimit(10.0)
    assert not any(limit.overdue(5, 5, now) for now in (0.0, 100.0, 1000.0))


def test_a_step_is_late_when_none_got_its_result_for_so_long() -> None:
    limit = StepLimit(10.0)
    assert not limit.overdue(5, 5, 100.0)
    assert not limit.overdue(6, 5, 109.0)
    assert limit.overdue(6, 5, 110.0)


def test_each_result_gives_the_next_step_its_own_time() -> None:
    limit = StepLimit(10.0)
    counts = [(2, 0), (3, 1), (4, 2)]
    for i, (submitted, completed) in enumerate(counts):
        assert not limit.overdue(submitted, completed, 100.0 + 9 * i)
    assert not limit.overdue(4, 2, 127.0)
    assert limit.overdue(4, 2, 128.0)


def test_the_first_look_at_a_step_is_when_its_time_begins() -> None:
    assert not StepLimit(10.0).overdue(1, 0, 1e6)
