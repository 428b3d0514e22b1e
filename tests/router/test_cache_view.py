"""Cache events of one worker: in order, once, and none missing."""

from hypothesis import given
from hypothesis import strategies as st

from core.cache_events import CacheChange
from router.prefix_index.cache_view import ASK_AGAIN_S, ApplyChange, AskEvents, CacheView

EPOCH = 7


def taken(view: CacheView, sequence: int, now: float = 0.0, *, cleared: bool = False) -> object:
    step = view.take(EPOCH, CacheChange(sequence, cleared=cleared), now)
    return step.change.sequence if isinstance(step, ApplyChange) else step


def test_changes_in_order_are_applied() -> None:
    view = CacheView(EPOCH)
    assert [taken(view, n) for n in (1, 2, 3)] == [1, 2, 3]


def test_a_doubled_change_is_nothing_new() -> None:
    view = CacheView(EPOCH)
    assert [taken(view, n) for n in (1, 2, 1, 2)] == [1, 2, None, None]


def test_a_gap_is_asked_for_once_and_again_when_no_answer_comes() -> None:
    view = CacheView(EPOCH)
    taken(view, 1)
    assert taken(view, 4, 10.0) == AskEvents(after=1)
    assert taken(view, 5, 10.0 + ASK_AGAIN_S / 2) is None
    assert taken(view, 6, 10.0 + ASK_AGAIN_S) == AskEvents(after=1)
    assert [taken(view, n) for n in (2, 3, 4, 5, 6)] == [2, 3, 4, 5, 6]
    assert not view.is_behind


def test_a_lost_last_change_shows_by_what_the_worker_says_of_itself() -> None:
    view = CacheView(EPOCH)
    taken(view, 1)
    assert view.hears_of(EPOCH, 1, 5.0) is None
    assert view.hears_of(EPOCH, 2, 5.0) == AskEvents(after=1)


def test_everything_at_once_ends_the_wait() -> None:
    view = CacheView(EPOCH)
    taken(view, 9)
    assert taken(view, 9, cleared=True) == 9
    assert not view.is_behind
    assert taken(view, 10) == 10


def test_everything_as_it_was_earlier_comes_too_late() -> None:
    view = CacheView(EPOCH)
    assert [taken(view, n) for n in (1, 2)] == [1, 2]
    assert taken(view, 1, cleared=True) is None


def test_events_of_an_earlier_life_mean_nothing() -> None:
    view = CacheView(EPOCH)
    assert view.take(EPOCH - 1, CacheChange(1), 0.0) is None
    assert view.hears_of(EPOCH - 1, 99, 0.0) is None


def test_a_stream_that_broke_took_the_question_with_it() -> None:
    view = CacheView(EPOCH)
    assert taken(view, 3) == AskEvents(after=0)
    view.reattached()
    assert taken(view, 4) == AskEvents(after=0)


@given(st.lists(st.integers(1, 12), max_size=60))
def test_in_any_order_every_change_is_applied_once_and_after_the_one_before(
    arrivals: list[int],
) -> None:
    view, applied = CacheView(EPOCH), []
    for now, sequence in enumerate(arrivals):
        step = taken(view, sequence, float(now))
        if isinstance(step, AskEvents):
            assert step.after == len(applied)
        elif step is not None:
            applied.append(step)
    assert applied == list(range(1, len(applied) + 1))
