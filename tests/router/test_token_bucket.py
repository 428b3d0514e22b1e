"""Rates with bursts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.admission.token_bucket import TokenBucket


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0)
    for _ in range(3):
        assert bucket.wait_s(1, now=10.0) == 0
        bucket.take(1, now=10.0)
    assert bucket.wait_s(1, now=10.0) == 0.5
    assert bucket.wait_s(1, now=10.5) == 0


def test_more_than_a_burst_waits_for_a_full_bucket_and_is_paid_off() -> None:
    bucket = TokenBucket(rate=1.0, burst=10.0)
    assert bucket.wait_s(25, now=0.0) == 0
    bucket.take(25, now=0.0)
    assert bucket.wait_s(1, now=0.0) == 16.0
    assert bucket.wait_s(25, now=0.0) == 25.0


def test_what_was_not_used_comes_back_up_to_the_burst() -> None:
    bucket = TokenBucket(rate=1.0, burst=10.0)
    bucket.take(8, now=0.0)
    bucket.take(-100, now=0.0)
    bucket.take(10, now=0.0)
    assert bucket.wait_s(1, now=0.0) == 1.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 30)), max_size=60))
def test_never_more_than_the_rate_and_one_burst_and_one_request(
    asked: list[tuple[float, float]],
) -> None:
    bucket, now, taken, largest = TokenBucket(rate=3.0, burst=7.0), 0.0, 0.0, 0.0
    for pause, cost in asked:
        now += pause
        if bucket.wait_s(cost, now) == 0:
            bucket.take(cost, now)
            taken, largest = taken + cost, max(largest, cost)
            assert taken <= 7.0 + 3.0 * now + largest + 1e-6
