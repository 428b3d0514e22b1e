"""The order of prompts: as many as possible in time, nobody passed for ever, equals by arrival."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from core.prefill_order import PATIENCE, PendingPrefill, PrefillOrder

TTFT = 10.0
DEADLINE = 9.0  # nine tenths are for computing
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def total_of(order: PrefillOrder) -> int:
    """What prompt 1's patience is measured by."""
    return int(order._counts[1, order._place[1]])


def only(order: PrefillOrder) -> PendingPrefill:
    """Prompt 1, which came first and is still there."""
    return next(pending for pending in order.sequence(0.0) if pending.number == 1)


def order_of(*lengths: int, speed: float = 1.0) -> PrefillOrder:
    """Prompts 1, 2, … that came at time 0, on a worker that computes ``speed`` tokens a second."""
    order = PrefillOrder(TTFT)
    order.measured(100, 100 / speed)
    for number, tokens in enumerate(lengths, start=1):
        order.add(number, tokens, 0.0)
    return order


def numbers(order: PrefillOrder, now: float = 0.0) -> list[int]:
    return [pending.number for pending in order.sequence(now)]


def test_while_all_are_in_time_it_is_first_come_first_served() -> None:
    assert numbers(order_of(4, 1, 3)) == [1, 2, 3]


def test_a_long_prompt_gives_way_where_that_saves_short_ones() -> None:
    assert numbers(order_of(8, 2, 2)) == [2, 3, 1]


def test_what_is_late_anyway_comes_last_by_arrival() -> None:
    order = order_of(3, 2)
    order.add(3, 2, 20.0)
    assert numbers(order, 20.0) == [3, 1, 2]


def test_before_the_speed_is_known_it_is_first_come_first_served() -> None:
    order = PrefillOrder(TTFT)
    for number in (1, 2, 3):
        order.add(number, 10 * number, 0.0)
    assert numbers(order) == [1, 2, 3]


def test_the_speed_follows_the_steps() -> None:
    order = order_of(8, 2)
    assert numbers(order) == [2, 1]
    for _ in range(30):
        order.measured(100, 50.0)
    assert numbers(order) == [1, 2], "at two tokens a second both are in time"


def test_a_prompt_that_was_passed_for_long_goes_first() -> None:
    order = order_of(9)
    for number in range(2, 2 + PATIENCE):
        order.add(number, 9, 9.5)
        assert numbers(order, 9.5)[0] == number
        order.planned(number, 9)
    order.add(99, 1, 9.5)
    assert numbers(order, 9.5) == [1, 99]


def test_tokens_of_earlier_prompts_are_no_passing() -> None:
    order = order_of(20, 1, 1)
    order.planned(1, 12)
    assert [p.is_aged for p in order.sequence(0.0)] == [False] * 3
    order.planned(3, 1)
    assert [(p.number, p.remaining) for p in order.sequence(0.0)] == [(1, 8), (2, 1)]
    order.planned(1, 8)
    assert 1 not in order


def test_prompts_come_and_go_for_long() -> None:
    order = order_of(5)
    for number in range(2, 300):
        order.add(number, 3, 0.0)
        if number % 3:
            order.planned(number, 3)
        elif number % 2:
            order.remove(number)
    waiting = [1, *range(6, 300, 6)]
    assert sorted(numbers(order)) == waiting
    assert all(number in order for number in waiting)
    assert numbers(order)[0] == 1, "it was passed by far more than its tokens"
    for number in waiting:
        order.remove(number)
    order.add(300, 4, 0.0)
    assert numbers(order) == [300]


@given(
    prompts=st.lists(st.tuples(st.integers(1, 9), st.floats(0, 3)), max_size=12),
    now=st.floats(0, 30),
)
def test_it_is_moore_and_hodgsons_rule(prompts: list[tuple[int, float]], now: float) -> None:
    order = order_of()
    arrived = 0.0
    deadlines: dict[int, float] = {}
    for number, (tokens, pause) in enumerate(prompts, start=1):
        arrived += pause
        order.add(number, tokens, arrived)
        deadlines[number] = arrived + DEADLINE
    taken: list[int] = []
    for number, deadline in deadlines.items():
        taken.append(number)
        if now + sum(prompts[n - 1][0] for n in taken) > deadline:
            taken.remove(max(taken, key=lambda n: (prompts[n - 1][0], n)))
    late = [number for number in deadlines if number not in taken]
    assert numbers(order, now) == [*taken, *late]


@given(length=st.integers(1, 60), held=st.lists(st.integers(0, 59), max_size=3), data=st.data())
def test_what_the_cache_holds_does_not_count_in_the_patience(
    length: int, held: list[int], data: st.DataObject
) -> None:
    """A prompt whose cached prefix changes before its first chunk waits as long as one that came
    with what is left then."""
    corrected, short = order_of(length), PrefillOrder(TTFT)
    for prefix in held:
        corrected.correct(1, max(1, length - prefix))
    own = only(corrected).remaining
    short.add(1, own, 0.0)
    passed = 0
    while not only(short).is_aged:
        assert not only(corrected).is_aged
        tokens = data.draw(st.integers(1, 40))
        for order in (corrected, short):
            order.add(2, tokens, 0.0)
            order.planned(2, tokens)
        passed += tokens
    assert only(corrected).is_aged
    assert passed >= PATIENCE * own


@given(
    length=st.integers(2, 60),
    moves=st.lists(st.tuples(st.integers(1, 59), st.integers(1, 60)), max_size=6),
)
def test_blocks_that_are_taken_away_never_make_it_wait_for_more_than_its_length(
    length: int, moves: list[tuple[int, int]]
) -> None:
    order = order_of(length)
    for planned, left in moves:
        order.planned(1, min(planned, only(order).remaining - 1))
        order.correct(1, min(left, length))
        assert only(order).remaining <= total_of(order) <= length
        if only(order).remaining == 1:
            break


@given(lengths=LENGTHS)
def test_no_other_order_gets_more_prompts_done_in_time(lengths: list[int]) -> None:
    def in_time(order: tuple[int, ...]) -> int:
        ends = [sum(lengths[n - 1] for n in order[: i + 1]) for i in range(len(order))]
        return sum(end <= DEADLINE for end in ends)

    chosen = tuple(numbers(order_of(*lengths)))
    assert sorted(chosen) == list(range(1, len(lengths) + 1))
    assert in_time(chosen) == max(in_time(other) for other in permutations(chosen))


@given(
    length=st.integers(1, 9), count=st.integers(1, 8), now=st.floats(0, 30), speed=st.floats(0.1, 9)
)
def test_equals_keep_the_order_of_arrival(
    length: int, count: int, now: float, speed: float
) -> None:
    assert numbers(order_of(*[length] * count, speed=speed), now) == list(range(1, count + 1))
