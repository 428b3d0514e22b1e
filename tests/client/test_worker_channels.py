"""Which channels to decode workers a client keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crossdock.client.connection import _IDLE_S, _UNREACHABLE_S, WorkerChannels


def channels() -> WorkerChannels[list[str]]:
    """Each a list of its own, told apart by identity."""
    return WorkerChannels(lambda endpoint: [endpoint])


def call(workers: WorkerChannels[list[str]], endpoint: str, now: float) -> list[list[str]]:
    """One that ends at once; gives what is to be closed."""
    assert workers.take(endpoint, now) is not None
    return workers.give_back(endpoint, True, now)


def test_calls_to_a_worker_share_a_channel() -> None:
    workers = channels()
    first = workers.take("d0", 0.0)
    assert workers.take("d0", 0.0) is first
    assert workers.give_back("d0", True, 1.0) == workers.give_back("d0", True, 1.0) == []
    assert workers.take("d0", 2.0) is first


def test_where_nobody_is_nobody_is_looked_for_for_a_while() -> None:
    workers = channels()
    workers.take("d0", 0.0)
    workers.take("d0", 0.0)
    assert workers.give_back("d0", False, 1.0) == []
    assert workers.give_back("d0", True, 2.0) == [["d0"]], "with its last call"
    assert workers.take("d0", 1.0 + _UNREACHABLE_S - 0.1) is None
    assert workers.take("d0", 1.0 + _UNREACHABLE_S) == ["d0"]


def test_what_nobody_used_for_a_while_is_given_up() -> None:
    """Such as that of a worker that served for long, and is gone."""
    workers = channels()
    assert call(workers, "gone", 0.0) == []
    assert call(workers, "d0", _IDLE_S - 1.0) == []
    assert call(workers, "d0", _IDLE_S) == [["gone"]]
    assert workers.all == [["d0"]]


def test_a_long_answer_keeps_its_channel() -> None:
    workers = channels()
    workers.take("long", 0.0)
    assert call(workers, "long", 1.0) == []
    assert call(workers, "d0", 10 * _IDLE_S) == []
    assert ["long"] in workers.all


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200), st.booleans())))
def test_channels_are_closed_once_and_never_under_a_call(
    steps: list[tuple[str, int, bool]],
) -> None:
    workers, now, closed = channels(), 0.0, []
    calls: dict[str, list[list[str]]] = {name: [] for name in "abc"}
    for endpoint, pause, what in steps:
        now += pause
        if what:
            channel = workers.take(endpoint, now)
            if channel is not None:
                assert all(channel is not other for other in closed)
                calls[endpoint].append(channel)
        elif calls[endpoint]:
            calls[endpoint].pop()
            new = workers.give_back(endpoint, pause % 3 > 0, now)
            assert not any(one is other for one in new for other in (*closed, *workers.all))
            assert not any(calls[one] for [one] in new)
            closed += new
