"""The door: who is let in, who waits, who is refused. No sockets, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.errors import CrossdockError, InvalidField
from core.request import RequestKey
from core.tenants import Tenant, TenantLimits
from router.admission.admission import Admission
from router.admission.door import Door
from router.admission.messages import Arrived, Ended, RoomChanged, Started


@dataclass
class Cluster:
    """Workers that run ``slots`` requests, of up to ``longest`` prompt tokens while they run any,
    and the door in front of them."""

    slots: int = 1
    tenants: dict[str, Tenant] = field(default_factory=dict)
    max_waiting: int = 100
    longest: int = 1 << 20
    decode_blocks: int = 1000
    now: float = 0.0
    running: list[str] = field(default_factory=list)
    refused: dict[str, CrossdockError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admission = Admission(self.tenant, self, self.max_waiting, block_size=16)
        self.door = Door(self.admission, self._admit, self._refuse)

    def tenant(self, name: str) -> Tenant:
        return self.tenants.get(name, Tenant(name))

    def has_room(self, prompt_tokens: int) -> bool:
        return len(self.running) < self.slots and prompt_tokens <= self.longest

    def _admit(self, key: RequestKey) -> None:
        self.running.append(key.request_id)

    def _refuse(self, key: RequestKey, error: CrossdockError) -> None:
        self.refused[key.request_id] = error

    def arrive(
        self,
        name: str,
        *,
        prompt: int = 10,
        answers: int = 1,
        max_tokens: int = 20,
        priority: int = 0,
        due: float = 0.0,
    ) -> None:
        """The tenant is the name up to the first digit."""
        event = Arrived(key(name), priority, due, prompt, answers, max_tokens)
        self.door.tell(event, self.now)

    def finish(self, name: str, *, generated: int = 20, computed: int = 10) -> None:
        if name in self.running:
            self.running.remove(name)
        self.door.tell(Started(key(name)), self.now)
        self.door.tell(Ended(key(name), computed, generated), self.now)


def key(name: str) -> RequestKey:
    return RequestKey(name.rstrip("0123456789"), name)


def test_with_room_everything_is_let_in_at_once() -> None:
    cluster = Cluster(slots=5)
    for number in range(5):
        cluster.arrive(f"a{number}")
    assert cluster.running == ["a0", "a1", "a2", "a3", "a4"]


def test_what_finds_no_room_waits_until_something_ends() -> None:
    cluster = Cluster()
    for name in ("a0", "a1", "a2"):
        cluster.arrive(name)
    assert (cluster.running, cluster.admission.queued) == (["a0"], 2)
    cluster.finish("a0")
    assert (cluster.running, cluster.admission.queued) == (["a1"], 1)


def test_room_that_others_made_is_used_when_it_is_told() -> None:
    cluster = Cluster()
    cluster.arrive("a0")
    cluster.arrive("a1")
    cluster.slots = 2
    cluster.door.room_changed(0.0)
    assert cluster.running == ["a0", "a1"]


def test_a_prompt_without_room_holds_back_no_shorter_one() -> None:
    cluster = Cluster(slots=9)
    cluster.arrive("a0")
    cluster.longest = 99
    for name, prompt in (("long0", 100), ("b0", 10), ("long1", 10)):
        cluster.arrive(name, prompt=prompt)
    assert cluster.running == ["a0", "b0", "long1"]
    cluster.longest = 100
    cluster.door.room_changed(0.0)
    assert cluster.running == ["a0", "b0", "long1", "long0"]


def test_a_prompt_without_room_is_passed_by_so_much_and_no_more() -> None:
    cluster = Cluster(slots=99)
    cluster.arrive("a0")
    cluster.longest = 99
    cluster.arrive("long0", prompt=100)
    for number in range(20):
        cluster.arrive(f"b{number}", prompt=80)
    assert cluster.running == ["a0", *(f"b{number}" for number in range(10))]


def test_an_empty_router_lets_one_in_whatever_workers_seem_to_have() -> None:
    """Else it would wait for news that may never come."""
    cluster = Cluster(slots=0)
    cluster.arrive("a0")
    cluster.arrive("a1")
    assert cluster.running == ["a0"]


def test_a_defect_in_one_request_closes_the_door_to_no_other() -> None:
    cluster = Cluster(slots=5)

    def admit(key: RequestKey) -> None:
        if key.request_id == "a0":
            raise ZeroDivisionError
        cluster.running.append(key.request_id)

    cluster.door = Door(cluster.admission, admit, cluster._refuse)
    with pytest.raises(ZeroDivisionError):
        cluster.arrive("a0")
    cluster.arrive("a1")
    assert cluster.running == ["a1"]


def test_a_flood_leaves_others_their_turns() -> None:
    cluster = Cluster()
    for number in range(10):
        cluster.arrive(f"flood{number}")
    cluster.arrive("quiet0")
    cluster.finish("flood0")
    cluster.finish(cluster.running[0])
    assert cluster.admission.queued_of_tenants() == {"flood": 8}


def test_of_too_many_the_one_that_would_be_last_is_refused() -> None:
    cluster = Cluster(max_waiting=3)
    for number in range(4):
        cluster.arrive(f"flood{number}")
    assert list(cluster.refused) == ["flood3"]
    cluster.arrive("quiet0")
    assert list(cluster.refused) == ["flood3", "flood2"]
    error = cluster.refused["flood2"]
    assert (error.reason, error.status.http_status) == ("QUEUE_FULL", 429)


def test_who_is_refused_hears_how_fast_the_queue_moves() -> None:
    cluster = Cluster(max_waiting=4)
    for number in range(4):
        cluster.arrive(f"a{number}")
    for number in range(4):
        cluster.now += 3.0
        cluster.finish(f"a{number}")
    for number in range(4, 9):
        cluster.arrive(f"a{number}")
    assert cluster.refused["a8"].retry_after == pytest.approx(3.0 * 5)


def test_who_its_own_limits_hold_up_hears_how_fast_its_own_line_moves() -> None:
    """However fast others pass it."""
    slow = Tenant("slow", limits=TenantLimits(concurrent_sequences=1))
    cluster = Cluster(slots=9, max_waiting=4, tenants={"slow": slow})
    cluster.arrive("slow0")
    for number in range(10):
        cluster.arrive(f"quick{number}")
        cluster.now += 1.0
        cluster.finish(f"quick{number}")
    cluster.finish("slow0")
    for number in range(1, 6):
        cluster.arrive(f"slow{number}")
    assert cluster.refused["slow5"].retry_after == pytest.approx(10.0 * 5)


def test_a_queue_that_has_come_to_a_halt_is_as_slow_as_that() -> None:
    cluster = Cluster(max_waiting=2)
    cluster.arrive("a0")
    cluster.now += 0.1
    cluster.finish("a0")
    for number in range(1, 3):
        cluster.arrive(f"a{number}")
    cluster.now += 8.0
    cluster.arrive("a3")
    assert cluster.refused["a3"].retry_after == pytest.approx(8.0 * 3)


def test_requests_with_a_token_wait_for_nothing() -> None:
    cluster = Cluster(slots=9, max_waiting=1)
    for number in range(3):
        cluster.arrive(f"a{number}")
        cluster.door.tell(Started(key(f"a{number}")), 0.0)
    assert (cluster.running, cluster.refused) == (["a0", "a1", "a2"], {})


def limited(**limits: float) -> Cluster:
    tenant = Tenant("a", limits=TenantLimits(**limits))  # type: ignore[arg-type]
    return Cluster(slots=100, tenants={"a": tenant})


def test_requests_per_second_are_counted_and_the_wait_is_told() -> None:
    cluster = limited(requests_per_second=2)
    for number in range(3):
        cluster.arrive(f"a{number}")
        cluster.arrive(f"b{number}")
    assert list(cluster.refused) == ["a2"]
    error = cluster.refused["a2"]
    assert (error.reason, error.retry_after) == ("REQUESTS_PER_SECOND", 0.5)
    cluster.now = 0.5
    cluster.arrive("a3")
    assert "a3" in cluster.running


def test_tokens_per_minute_are_those_that_were_used() -> None:
    """20 expected of each answer; what it did not need comes back when it has ended."""
    cluster = limited(tokens_per_minute=60)
    cluster.arrive("a0", prompt=10)
    cluster.arrive("a1", prompt=10)
    cluster.arrive("a2", prompt=10)
    assert cluster.refused["a2"].reason == "TOKENS_PER_MINUTE"
    assert cluster.refused["a2"].retry_after == pytest.approx(30.0)
    cluster.finish("a0", generated=1, computed=0)
    cluster.arrive("a3", prompt=5)
    assert "a3" in cluster.running


def test_concurrent_sequences_wait_their_turn_at_the_door() -> None:
    cluster = limited(concurrent_sequences=2)
    for number in range(3):
        cluster.arrive(f"a{number}")
    cluster.arrive("b0")
    assert cluster.running == ["a0", "a1", "b0"]
    cluster.finish("a0")
    assert cluster.running == ["a1", "b0", "a2"]


def test_more_answers_than_a_tenant_may_ever_have_are_refused_by_name() -> None:
    cluster = limited(concurrent_sequences=2)
    cluster.arrive("a0", answers=3)
    assert isinstance(cluster.refused["a0"], InvalidField)


def test_a_share_of_the_blocks_bounds_what_runs() -> None:
    """A prompt of 160 tokens has 10 blocks, its answer 2; a tenth of all is 25."""
    cluster = limited(cache_share=0.025)
    for number in range(3):
        cluster.arrive(f"a{number}", prompt=160)
    assert cluster.running == ["a0", "a1"]
    cluster.finish("a1")
    assert cluster.running == ["a0", "a2"]


def test_answers_longer_than_those_before_take_no_more_than_the_share() -> None:
    """Each may have 75 blocks, a tenth of all is 100, however short the earlier ones were."""
    cluster = limited(cache_share=0.1)
    cluster.arrive("a0", max_tokens=1190)
    cluster.finish("a0", generated=1)
    for name in ("a1", "a2"):
        cluster.arrive(name, max_tokens=1190)
    assert cluster.running == ["a1"]


def test_a_request_beyond_its_share_runs_alone() -> None:
    cluster = limited(cache_share=0.001)
    cluster.arrive("a0", prompt=1600)
    cluster.arrive("a1")
    assert cluster.running == ["a0"]


def test_who_leaves_the_queue_gives_everything_back() -> None:
    cluster = limited(concurrent_sequences=1, tokens_per_minute=60)
    cluster.arrive("a0")
    cluster.arrive("a1")
    cluster.door.tell(Ended(key("a1"), 10, 0), 0.0)
    cluster.arrive("a2")
    assert cluster.refused == {}
    cluster.finish("a0")
    assert cluster.running == ["a2"]


def test_a_thousand_that_end_as_they_are_let_in_nest_no_calls() -> None:
    cluster = Cluster(slots=1, max_waiting=5000)
    cluster.arrive("a0")
    for number in range(1, 3000):
        cluster.arrive(f"a{number}")

    def fail(key: RequestKey) -> None:
        cluster.door.tell(Ended(key, 10, 0), cluster.now)

    cluster.door._admit = fail
    cluster.finish("a0")
    assert cluster.admission.queued == 0


@settings(max_examples=examples(150))
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 2), st.integers(0, 5))
    ),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_nobody_is_lost_and_no_limit_is_broken(
    steps: list[tuple[str, int, int, int]], slots: int, max_waiting: int
) -> None:
    """Any order of arrivals, ends and departures: each request is in exactly one place."""
    tenants = {"a": Tenant("a", limits=TenantLimits(concurrent_sequences=4)), "b": Tenant("b", 3.0)}
    cluster = Cluster(slots, tenants, max_waiting)
    alive: dict[str, int] = {}
    for number, (tenant, answers, priority, what) in enumerate(steps):
        cluster.now += 0.5
        name = f"{tenant}{number}"
        if what < 3:
            alive[name] = answers
            cluster.arrive(name, answers=answers, priority=priority)
        elif what < 5 and cluster.running:
            ended = cluster.running[number % len(cluster.running)]
            cluster.finish(ended, generated=number % 20)
            del alive[ended]
        elif alive:
            ended = list(alive)[number % len(alive)]
            if ended not in cluster.refused:
                cluster.finish(ended)
            del alive[ended]
        for refused in cluster.refused:
            alive.pop(refused, None)
        assert set(cluster.running) <= set(alive)
        assert cluster.admission.queued == len(alive) - len(cluster.running)
        of_a = [alive[name] for name in cluster.running if name.startswith("a")]
        assert len(of_a) <= 1 or sum(of_a) <= 4
        assert len(cluster.running) <= slots
    while cluster.running:
        cluster.finish(cluster.running[0])
    cluster.door.tell(RoomChanged(), cluster.now)
    assert cluster.admission.queued == 0
