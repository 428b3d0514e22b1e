"""The life of workers: when they start, when they are replaced, and when starting is given up."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.plan import Slot
from cluster.pool_state import (
    MAX_DELAY_S,
    GiveUp,
    Lost,
    MemberState,
    PoolState,
    PublishWorkers,
    RestartDue,
    RestartLater,
    Started,
    StartWorker,
)

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")


def started(slot: Slot, epoch: int = 1) -> Started:
    return Started(slot, f"127.0.0.1:{epoch}", epoch, pid=100 + epoch)


def ready_pair() -> PoolState:
    state = PoolState([P0, D0], now=0.0)
    state.handle(started(P0), 1.0)
    state.handle(started(D0), 1.0)
    return state


def delays_of(commands: list) -> list[float]:
    return [command.delay_s for command in commands if isinstance(command, RestartLater)]


def test_at_the_beginning_every_worker_is_started() -> None:
    assert PoolState([P0, D0], now=0.0).begin() == [StartWorker(P0), StartWorker(D0)]


def test_routers_learn_of_each_worker_as_soon_as_it_is_ready() -> None:
    state = PoolState([P0, D0], now=0.0)
    [published] = state.handle(started(D0), 1.0)
    assert isinstance(published, PublishWorkers)
    assert [member.slot for member in published.ready] == [D0]
    assert not state.all_ready
    state.handle(started(P0), 2.0)
    assert state.all_ready


def test_a_dead_worker_leaves_the_list_and_is_replaced_at_once() -> None:
    state = ready_pair()
    published, later = state.handle(Lost(P0, "killed"), 5.0)
    assert [member.slot for member in published.ready] == [D0]
    assert later == RestartLater(P0, 0.0)
    assert state.handle(RestartDue(P0), 5.0) == [StartWorker(P0)]
    assert state.restarts == 1


def test_the_replacement_has_a_new_epoch() -> None:
    state = ready_pair()
    state.handle(Lost(P0, "killed"), 5.0)
    state.handle(RestartDue(P0), 5.0)
    [published] = state.handle(started(P0, epoch=2), 6.0)
    assert {member.slot: member.epoch for member in published.ready} == {P0: 2, D0: 1}


def test_a_worker_that_keeps_dying_is_started_less_and_less_often() -> None:
    state = ready_pair()
    delays = []
    for i in range(12):
        delays += delays_of(state.handle(Lost(P0, "crash"), float(i)))
        state.handle(RestartDue(P0), float(i))
        state.handle(started(P0), float(i))
    assert delays[:4] == [0.0, 0.5, 1.0, 2.0]
    assert delays[-1] == MAX_DELAY_S


def test_delays_begin_anew_after_a_healthy_life() -> None:
    state = ready_pair()
    for _ in range(3):
        state.handle(Lost(P0, "crash"), 1.0)
        state.handle(RestartDue(P0), 1.0)
        state.handle(started(P0), 1.0)
    assert delays_of(state.handle(Lost(P0, "crash"), 1_000.0)) == [0.0]


def test_a_replacement_that_fails_to_start_is_tried_again_later() -> None:
    state = ready_pair()
    state.handle(Lost(P0, "killed"), 5.0)
    state.handle(RestartDue(P0), 5.0)
    assert delays_of(state.handle(Lost(P0, "out of memory"), 6.0)) == [0.5]


def test_a_worker_that_never_became_ready_ends_the_start() -> None:
    state = PoolState([P0, D0], now=0.0)
    assert state.handle(Lost(P0, "bad model"), 1.0) == [GiveUp(P0, "bad model")]


def test_a_late_timer_of_a_living_worker_starts_nothing() -> None:
    state = ready_pair()
    assert state.handle(RestartDue(P0), 5.0) == []
    assert state.restarts == 0


def test_what_happened_can_be_read() -> None:
    state = ready_pair()
    state.handle(Lost(P0, "killed"), 5.0)
    [lost] = [member for member in state.members if member.slot == P0]
    assert lost.state is MemberState.LOST
    assert lost.detail == "killed; starts again in 0 s"


class PoolLife(RuleBasedStateMachine):
    """Workers die and start in any order; what routers were told is always who lives."""

    SLOTS = (P0, D0, Slot("decode", 1, "decode"))

    def __init__(self) -> None:
        super().__init__()
        self.state = PoolState(self.SLOTS, now=0.0)
        self.now = 0.0
        self.starting = {command.slot for command in self.state.begin()}
        self.alive: dict[Slot, int] = {}
        self.waiting: set[Slot] = set()
        self.published: dict[Slot, int] = {}
        self.epochs = 0
        for slot in self.SLOTS:
            self.become_ready(slot)

    def carry_out(self, commands: list) -> None:
        for command in commands:
            match command:
                case StartWorker(slot):
                    assert slot not in self.starting | self.alive.keys()
                    self.starting.add(slot)
                case RestartLater(slot, delay_s):
                    assert 0 <= delay_s <= MAX_DELAY_S
                    self.waiting.add(slot)
                case PublishWorkers(ready):
                    self.published = {member.slot: member.epoch for member in ready}
                case GiveUp():
                    raise AssertionError("gave up a worker that had been ready")

    def become_ready(self, slot: Slot) -> None:
        self.starting.discard(slot)
        self.epochs += 1
        self.alive[slot] = self.epochs
        self.carry_out(self.state.handle(started(slot, self.epochs), self.now))

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.alive or self.starting)
    @rule(data=st.data())
    def one_dies(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.alive.keys() | self.starting)))
        self.alive.pop(slot, None)
        self.starting.discard(slot)
        self.carry_out(self.state.handle(Lost(slot, "dead"), self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_delay_ends(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.discard(slot)
        self.carry_out(self.state.handle(RestartDue(slot), self.now))

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def one_starts(self, data: st.DataObject) -> None:
        self.become_ready(data.draw(st.sampled_from(sorted(self.starting))))

    @invariant()
    def routers_know_who_lives(self) -> None:
        assert self.published == self.alive

    @invariant()
    def nobody_is_forgotten(self) -> None:
        assert self.alive.keys() | self.starting | self.waiting == set(self.SLOTS)


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
