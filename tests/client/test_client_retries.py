"""Which failures the client tries again, and when."""

from __future__ import annotations

from random import Random

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.client.errors import ServerError
from crossdock.client.retries import RetryPolicy, Tries

Code = grpc.StatusCode


def error(code: Code, reason: str = "", retry_after: float | None = None) -> ServerError:
    return ServerError(code, "no", reason=reason, retry_after=retry_after)


NO_CONNECTION = error(Code.UNAVAILABLE)
FULL = error(Code.RESOURCE_EXHAUSTED, "NO_ROOM", retry_after=2.0)


def tries(deadline: float | None = None, **policy: float) -> Tries:
    return Tries(RetryPolicy(**policy), deadline, Random(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (NO_CONNECTION, True),
        (FULL, True),
        (error(Code.UNAVAILABLE, "NO_WORKER", retry_after=1.0), True),
        (error(Code.UNAVAILABLE, "SAYS_NOTHING_OF_A_RETRY"), False),
        (error(Code.RESOURCE_EXHAUSTED), False),
        (error(Code.RESOURCE_EXHAUSTED, "TOO_LARGE"), False),
        (error(Code.ALREADY_EXISTS, "REQUEST_ID_TAKEN"), False),
        (error(Code.ABORTED, "STREAM_CUT", retry_after=1.0), False),
        (error(Code.DEADLINE_EXCEEDED, retry_after=1.0), False),
        (error(Code.INVALID_ARGUMENT, "INVALID_FIELD"), False),
        (error(Code.CANCELLED), False),
        (error(Code.INTERNAL, "INTERNAL"), False),
    ],
    ids=str,
)
def test_only_what_may_pass_is_tried_again(failure: ServerError, again: bool) -> None:
    assert (tries().pause_after(failure, 0.0) is not None) == again


def test_nothing_is_tried_again_once_a_part_of_the_answer_has_come() -> None:
    call = tries()
    call.received()
    assert call.pause_after(NO_CONNECTION, 0.0) is None


def test_pauses_double_up_to_the_longest() -> None:
    call = tries(max_tries=8, first_pause_s=1.0, longest_pause_s=8.0)
    pauses = [call.pause_after(NO_CONNECTION, 0.0) for _ in range(7)]
    for pause, most in zip(pauses, (1, 2, 4, 8, 8, 8, 8), strict=True):
        assert pause is not None
        assert most / 2 <= pause <= most
    assert call.pause_after(NO_CONNECTION, 0.0) is None


def test_clients_refused_together_come_back_apart() -> None:
    pauses = {Tries(RetryPolicy(), None, Random(seed)).pause_after(FULL, 0.0) for seed in range(9)}
    assert len(pauses) == 9


def test_without_retries_there_is_one_try() -> None:
    assert tries(max_tries=1).pause_after(NO_CONNECTION, 0.0) is None


def test_a_pause_beyond_the_deadline_is_not_begun() -> None:
    assert tries(deadline=10.0).pause_after(FULL, 8.5) is None
    assert tries(deadline=10.0).pause_after(FULL, 5.0) is not None


def test_a_try_has_what_the_others_left() -> None:
    assert tries(deadline=10.0).remaining(4.0) == 6.0
    assert tries(deadline=10.0).remaining(11.0) == 0.0
    assert tries().remaining(4.0) is None


@given(
    seed=st.integers(),
    asked=st.lists(st.none() | st.floats(0.001, 60.0), max_size=20),
    timeout=st.none() | st.floats(0.0, 120.0),
    max_tries=st.integers(1, 10),
)
def test_no_call_is_tried_too_often_too_early_or_too_late(
    seed: int, asked: list[float | None], timeout: float | None, max_tries: int
) -> None:
    policy = RetryPolicy(max_tries=max_tries)
    call = Tries(policy, timeout, Random(seed))
    now, made = 0.0, 1
    for retry_after in asked:
        pause = call.pause_after(error(Code.UNAVAILABLE, "X" * bool(retry_after), retry_after), now)
        if pause is None:
            continue
        assert pause >= (retry_after or policy.first_pause_s / 2)
        assert pause <= (retry_after or 0.0) + policy.longest_pause_s
        now, made = now + pause, made + 1
        assert timeout is None or now < timeout
    assert made <= max_tries


@pytest.mark.parametrize(
    "policy",
    [{"max_tries": 0}, {"first_pause_s": 0.0}, {"first_pause_s": 9.0, "longest_pause_s": 5.0}],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(policy))):
        RetryPolicy(**policy)  # type: ignore[arg-type]
