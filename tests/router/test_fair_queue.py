"""Whose turn it is among those who wait."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from core.prefill_order import PATIENCE
from core.request import RequestKey
from router.admission.fair_queue import FairQueue
from router.admission.waiting_line import Waiting


def waiting(
    tenant: str,
    name: str,
    *,
    cost: float = 1.0,
    weight: float = 1.0,
    priority: int = 0,
    due: float = 0.0,
    tokens: int = 10,
) -> Waiting:
    return Waiting(RequestKey(tenant, name), priority, due, cost, weight, tokens)


def anybody(waiting: Waiting) -> bool:
    return True


def anywhere(prompt_tokens: int) -> bool:
    return True


def leave_all(queue: FairQueue) -> list[str]:
    """Names in the order in which they get their turn."""
    names = []
    while (first := queue.next(anybody, anywhere)) is not None:
        queue.leave(first)
        names.append(first.key.request_id)
    assert len(queue) == 0
    return names


def test_the_first_due_goes_first_within_a_tenant() -> None:
    queue = FairQueue()
    for name, due in (("late", 3.0), ("early", 1.0), ("also early", 1.0)):
        queue.add(waiting("a", name, due=due))
    assert leave_all(queue) == ["early", "also early", "late"]


def test_tenants_take_turns_whoever_came_first() -> None:
    queue = FairQueue()
    for number in range(4):
        queue.add(waiting("flood", f"f{number}"))
    queue.add(waiting("quiet", "q0"))
    queue.add(waiting("quiet", "q1"))
    order = leave_all(queue)
    assert {*order[:2]} == {"f0", "q0"}
    assert order.index("q1") <= 3


def test_a_longer_request_costs_more_turns() -> None:
    queue = FairQueue()
    for number in range(6):
        queue.add(waiting("short", f"s{number}", cost=1.0))
        queue.add(waiting("long", f"l{number}", cost=3.0))
    order = leave_all(queue)[:8]
    assert sum(name.startswith("s") for name in order) == 6


def test_twice_the_weight_is_twice_the_share() -> None:
    queue = FairQueue()
    for number in range(30):
        queue.add(waiting("heavy", f"h{number}", weight=2.0))
        queue.add(waiting("light", f"l{number}", weight=1.0))
    first = leave_all(queue)[:30]
    assert sum(name.startswith("h") for name in first) == 20


def test_a_better_class_goes_before_any_share() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "later", priority=2))
    queue.add(waiting("a", "first", priority=0))
    queue.add(waiting("b", "second", priority=1))
    assert leave_all(queue) == ["first", "second", "later"]


def test_a_pause_earns_nothing() -> None:
    queue = FairQueue()
    busy_for_a_while(queue)
    assert back_among_first_four(queue) == 2


def test_a_pause_earns_nothing_either_for_who_is_the_first_to_come_back() -> None:
    """While nobody waits there is no one to start level with."""
    queue = FairQueue()
    busy_for_a_while(queue)
    for number in range(8):
        queue.add(waiting("back", f"d{number}"))
    for number in range(8):
        queue.add(waiting("busy", f"c{number}"))
    first = leave_all(queue)[:8]
    # One more is what the latest of the busy one was expected to cost when it left.
    assert sum(name.startswith("d") for name in first) in (4, 5)


def busy_for_a_while(queue: FairQueue) -> None:
    for number in range(10):
        queue.add(waiting("busy", f"b{number}"))
        queue.leave(waiting("busy", f"b{number}"))
        queue.settle((0, "busy"), 1.0, 1.0)


def back_among_first_four(queue: FairQueue) -> int:
    """Of the first four of class 0, those of the tenant that is back."""
    for number in range(4):
        queue.add(waiting("busy", f"c{number}"))
        queue.add(waiting("back", f"d{number}"))
    return sum(name.startswith("d") for name in leave_all(queue)[:4])


def test_who_has_no_turn_in_a_later_class_earns_others_nothing() -> None:
    queue = FairQueue()
    queue.add(waiting("starved", "s", priority=9))
    busy_for_a_while(queue)
    assert back_among_first_four(queue) == 2


def test_who_waits_in_a_later_class_earns_nothing_for_a_better_one() -> None:
    queue = FairQueue()
    queue.add(waiting("back", "s", priority=9))
    busy_for_a_while(queue)
    assert back_among_first_four(queue) == 2


def test_what_was_expected_in_vain_costs_nobody_anything() -> None:
    """The busy one's requests seemed long, and the newcomer came before they had ended."""
    queue = FairQueue()
    for number in range(6):
        queue.add(waiting("busy", f"b{number}", cost=100.0))
    for _ in range(2):
        first = queue.next(anybody, anywhere)
        assert first is not None
        queue.leave(first)
    queue.add(waiting("back", "d", cost=100.0))
    for _ in range(2):
        queue.settle((0, "busy"), 100.0, 1.0)
    assert leave_all(queue)[0] == "d"


def test_who_may_not_go_is_passed() -> None:
    queue = FairQueue()
    queue.add(waiting("full", "f"))
    queue.add(waiting("other", "o"))
    first = queue.next(lambda one: one.key.tenant != "full", anywhere)
    assert first is not None
    assert first.key.request_id == "o"
    assert queue.next(lambda one: False, anywhere) is None


def test_what_waits_for_its_tenants_limits_is_not_overtaken_by_that_tenants_later_classes() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "wide", priority=0))
    queue.add(waiting("a", "narrow", priority=5))
    queue.add(waiting("b", "other", priority=5))
    first = queue.next(lambda one: one.key.request_id != "wide", anywhere)
    assert first is not None
    assert first.key.request_id == "other"


def up_to(tokens: int) -> Callable[[int], bool]:
    return lambda prompt_tokens: prompt_tokens <= tokens


def next_name(queue: FairQueue, has_room: Callable[[int], bool]) -> str | None:
    """Who leaves now."""
    first = queue.next(anybody, has_room)
    if first is None:
        return None
    queue.leave(first)
    return first.key.request_id


def test_what_has_no_room_is_passed_by_shorter_ones_of_any_tenant_and_class() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "long", tokens=100))
    queue.add(waiting("a", "own", tokens=20, due=9.0))
    queue.add(waiting("b", "other's", tokens=30, cost=9.0))
    queue.add(waiting("c", "later class", tokens=40, priority=5))
    queue.add(waiting("c", "as long", tokens=100, priority=5, due=-1.0))
    assert [next_name(queue, up_to(99)) for _ in range(4)] == [
        "own",
        "other's",
        "later class",
        None,
    ]
    assert leave_all(queue) == ["long", "as long"]


def test_who_was_passed_by_enough_goes_first() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "long", tokens=100))
    for number in range(50):
        queue.add(waiting("b", str(number), tokens=20))
    left = 0
    while next_name(queue, up_to(99)) is not None:
        left += 1
    assert left * 20 == PATIENCE * 100
    assert next_name(queue, anywhere) == "long"
    assert next_name(queue, up_to(99)) == str(left)


def test_what_waits_for_its_tenants_limits_holds_nobody_else_up() -> None:
    """Also one that was passed by enough: it may wait for long."""
    queue = FairQueue()
    queue.add(waiting("a", "long", tokens=1))
    queue._pass([waiting("a", "long")], 1000)
    queue.add(waiting("b", "short", tokens=1))
    first = queue.next(lambda one: one.key.tenant != "a", anywhere)
    assert first is not None
    assert first.key.request_id == "short"


LONGEST = 50


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.integers(1, LONGEST)), max_size=60
    ),
    st.lists(st.integers(0, LONGEST), min_size=1, max_size=20),
)
def test_no_room_is_left_unused_and_nobody_is_passed_without_end(
    asked: list[tuple[str, int, int]], rooms: list[int]
) -> None:
    """Whatever has room when: who leaves has room, somebody leaves if anybody has, unless one waits
    that was passed by enough, and whoever's turn it was has been passed by that at most."""
    queue = FairQueue()
    here: dict[str, Waiting] = {}
    for number, (tenant, priority, tokens) in enumerate(asked):
        name = str(number)
        here[name] = waiting(tenant, name, priority=priority, tokens=tokens, cost=float(tokens))
        queue.add(here[name])
    passed = dict.fromkeys(here, 0)
    for most in rooms * 5:
        turn = next((one.key.request_id for one in queue._in_turn(anybody)), None)
        left = next_name(queue, up_to(most))
        if left is None:
            is_held = any(queue._is_aged(one) for one in here.values())
            assert is_held or all(one.prompt_tokens > most for one in here.values())
            continue
        tokens = here.pop(left).prompt_tokens
        assert tokens <= most
        if turn is not None and turn != left:
            passed[turn] += tokens
            assert passed[turn] < PATIENCE * here[turn].prompt_tokens + LONGEST
    assert len(leave_all(queue)) == len(here)


def test_what_is_refused_in_a_flood_leaves_nothing_behind() -> None:
    """Here it is of a class that never has its turn."""
    queue = FairQueue()
    queue.add(waiting("flood", "first"))
    for number in range(1000):
        queue.add(waiting("flood", str(number), due=1.0))
        gone = queue.last()
        queue.remove(gone.key, gone.priority)
    [line] = queue._all_lines()
    assert len(line.by_due) < 100
    assert len(line.by_length) < 100


def test_a_request_with_the_id_of_an_earlier_one_has_its_own_due_time() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "again", due=1.0))
    queue.add(waiting("a", "b", due=2.0))
    queue.remove(RequestKey("a", "again"), 0)
    queue.add(waiting("a", "again", due=3.0))
    assert leave_all(queue) == ["b", "again"]


def test_a_request_with_the_id_of_an_earlier_one_was_passed_by_nobody() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "again", tokens=10))
    for number in range(9):
        queue.add(waiting("b", str(number), tokens=9))
        assert next_name(queue, up_to(9)) == str(number)
    queue.add(waiting("b", "last", tokens=9))
    assert next_name(queue, up_to(9)) is None
    queue.remove(RequestKey("a", "again"), 0)
    queue.add(waiting("a", "again", tokens=10))
    assert next_name(queue, up_to(9)) == "last"


def test_the_newest_of_the_one_with_most_is_given_up_first() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.add(waiting("flood", f"f{number}"))
    queue.add(waiting("quiet", "q"))
    assert queue.last().key.request_id == "f2"
    queue.add(waiting("quiet", "spare", priority=5))
    assert queue.last().key.request_id == "spare"


operations = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 2),
        st.floats(0.1, 9),
        st.floats(0, 3),
        st.integers(0, 4),
    ),
    max_size=80,
)


@given(operations)
def test_each_leaves_once_whatever_happens(steps: list[tuple[str, int, float, float, int]]) -> None:
    """Against a plain dictionary: nobody is lost, nobody comes twice, classes are kept."""
    queue = FairQueue()
    here: dict[str, Waiting] = {}
    for number, (tenant, priority, cost, due, what) in enumerate(steps):
        if what < 3:
            one = waiting(tenant, str(number), cost=cost, priority=priority, due=due)
            queue.add(one)
            here[str(number)] = one
        elif what == 3 and here:
            first = queue.next(anybody, anywhere)
            assert first is not None
            assert first.priority == min(one.priority for one in here.values())
            queue.leave(first)
            del here[first.key.request_id]
        elif here:
            gone = queue.last()
            assert gone.priority == max(one.priority for one in here.values())
            assert queue.remove(gone.key, gone.priority) == here.pop(gone.key.request_id)
            assert queue.remove(gone.key, gone.priority) is None
        assert len(queue) == len(here) == sum(queue.waiting().values())
    assert sorted(leave_all(queue)) == sorted(here)


def pass_through(queue: FairQueue, request: Waiting) -> None:
    queue.pass_through((request.priority, request.key.tenant), request.cost / request.weight)


def wait_for_its_turn(queue: FairQueue, request: Waiting) -> None:
    queue.add(request)
    assert queue.next(anybody, anywhere) is request
    queue.leave(request)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.integers(1, 9), st.booleans()))
)
def test_who_passes_through_an_empty_queue_pays_as_who_waits_in_it(
    requests: list[tuple[str, int, int, bool]],
) -> None:
    orders = []
    for enter in (pass_through, wait_for_its_turn):
        queue = FairQueue()
        for number, (tenant, priority, cost, has_ended) in enumerate(requests):
            enter(queue, waiting(tenant, str(number), cost=cost, priority=priority))
            if has_ended:
                queue.settle((priority, tenant), cost, cost + 1)
        for number in range(24):
            tenant, priority = "abcd"[number % 4], number // 4 % 2
            queue.add(waiting(tenant, f"{tenant}{number}", cost=2.0, priority=priority))
        orders.append(leave_all(queue))
    assert orders[0] == orders[1]
