"""The life of workers: starts, deaths, scaling, draining, role changes; what routers are told."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from amounts import examples
from cluster.plan import Slot
from cluster.pool_messages import (
    Answered,
    BeginDrain,
    Drained,
    DrainWorker,
    EndWorker,
    EvictWorker,
    FlipWorker,
    GiveUp,
    KillWorker,
    Lost,
    Member,
    MemberState,
    NotAnswered,
    PublishWorkers,
    RestartDue,
    RestartLater,
    ScaleTo,
    Started,
    StartWorker,
)
from cluster.pool_state import ATTACH_PATIENCE_S, HANG_LIMIT_S, MAX_DELAY_S, PoolState
from cluster.wanted import Wanted
from core.errors import CrossdockError, InvalidField, NotFound, PreconditionFailed

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")
P1, D1, D2 = Slot("prefill", 1, "prefill"), Slot("decode", 1, "decode"), Slot("decode", 2, "decode")
M0, M1 = Slot("decode", 0, "mixed"), Slot("decode", 1, "mixed")


def started(slot: Slot, epoch: int = 1) -> Started:
    return Started(slot, f"127.0.0.1:{epoch}", epoch, pid=100 + epoch)


def answered(slot: Slot, epoch: int = 1, busy: int = 0) -> Answered:
    return Answered(slot, epoch, busy, attached=True)


def serving(*slots: Slot, prefill_required: bool = False) -> PoolState:
    """All of these are ready, and known to all routers."""
    state = PoolState(slots, 0.0, prefill_required=prefill_required)
    for slot in slots:
        state.handle(started(slot), 1.0)
    for slot in slots:
        state.handle(answered(slot), 1.0)
    assert state.settled
    return state


def ready_pair() -> PoolState:
    return serving(P0, D0)


def become_serving(state: PoolState, slot: Slot, now: float = 2.0) -> list:
    return state.handle(started(slot), now) + state.handle(answered(slot), now)


def delays_of(commands: list) -> list[float]:
    return [command.delay_s for command in commands if isinstance(command, RestartLater)]


def begun(commands: list) -> list[Slot]:
    return [command.slot for command in commands if isinstance(command, StartWorker)]


def drains(commands: list) -> list[Slot]:
    return [command.slot for command in commands if isinstance(command, BeginDrain)]


def ended(commands: list) -> list[Slot]:
    return [command.slot for command in commands if isinstance(command, EndWorker)]


def member(state: PoolState, slot: Slot) -> Member:
    [found] = [member for member in state.members if member.slot == slot]
    return found


def slots(state: PoolState) -> set[Slot]:
    return {member.slot for member in state.members}


# Starts and deaths


def test_at_the_beginning_every_worker_is_started() -> None:
    assert PoolState([P0, D0], now=0.0).begin() == [StartWorker(P0), StartWorker(D0)]


def test_routers_learn_of_each_worker_as_soon_as_it_is_ready() -> None:
    state = PoolState([P0, D0], now=0.0)
    [published] = state.handle(started(D0), 1.0)
    assert isinstance(published, PublishWorkers)
    assert [member.slot for member in published.workers] == [D0]
    assert not state.all_ready
    state.handle(started(P0), 2.0)
    assert state.all_ready


def test_a_dead_worker_leaves_the_list_and_is_replaced_at_once() -> None:
    state = ready_pair()
    published, later = state.handle(Lost(P0, "killed"), 5.0)
    assert [member.slot for member in published.workers] == [D0]
    assert later == RestartLater(P0, 0.0)
    assert state.handle(RestartDue(P0), 5.0) == [StartWorker(P0)]
    state.handle(started(P0, epoch=2), 6.0)
    assert state.restarts == 1


def test_the_replacement_has_a_new_epoch() -> None:
    state = ready_pair()
    state.handle(Lost(P0, "killed"), 5.0)
    state.handle(RestartDue(P0), 5.0)
    [published] = state.handle(started(P0, epoch=2), 6.0)
    assert {member.slot: member.epoch for member in published.workers} == {P0: 2, D0: 1}


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


def test_an_additional_worker_that_can_not_start_is_tried_again_and_says_why() -> None:
    state = ready_pair()
    state.handle(ScaleTo(decode=2), 2.0)
    assert delays_of(state.handle(Lost(D1, "out of memory"), 3.0)) == [0.0]
    assert member(state, D1).detail == "out of memory; starts again in 0 s"
    assert not state.settled


def test_a_late_timer_of_a_living_worker_starts_nothing() -> None:
    state = ready_pair()
    assert state.handle(RestartDue(P0), 5.0) == []
    assert state.restarts == 0


def test_waiting_for_room_is_no_restart() -> None:
    state = ready_pair()
    state.handle(Lost(P0, "its node is gone"), 5.0)
    for _ in range(3):
        state.handle(RestartDue(P0), 6.0)
        state.handle(Lost(P0, "no room"), 7.0)
    assert state.restarts == 0
    state.handle(RestartDue(P0), 8.0)
    state.handle(started(P0, epoch=2), 9.0)
    assert state.restarts == 1
    state.handle(ScaleTo(decode=2), 10.0)
    state.handle(Lost(D1, "no room"), 11.0)
    state.handle(RestartDue(D1), 12.0)
    state.handle(started(D1), 13.0)
    assert state.restarts == 1


def test_what_happened_can_be_read() -> None:
    state = ready_pair()
    state.handle(Lost(P0, "killed"), 5.0)
    assert member(state, P0).state is MemberState.LOST
    assert member(state, P0).detail == "killed; starts again in 0 s"


# Workers that hang


def ignore_for(state: PoolState, slot: Slot, times: list[float]) -> list:
    return [c for now in times for c in state.handle(NotAnswered(slot, 1), now)]


def test_a_worker_that_answers_nothing_for_long_is_killed_and_replaced() -> None:
    state = ready_pair()
    published, kill, later = ignore_for(state, D0, [100.0, 130.0, 100.0 + HANG_LIMIT_S])
    assert [member.slot for member in published.workers] == [P0]
    assert kill == KillWorker(D0, "it has answered nothing for 60 s")
    assert later == RestartLater(D0, 0.0)


def test_an_answer_in_between_is_a_sign_of_life() -> None:
    state = ready_pair()
    ignore_for(state, D0, [100.0, 130.0])
    state.handle(answered(D0), 140.0)
    assert ignore_for(state, D0, [150.0, 190.0]) == []


def test_two_lost_answers_around_a_pause_of_the_whole_machine_are_no_proof() -> None:
    assert ignore_for(ready_pair(), D0, [100.0, 10_000.0]) == []


def test_what_an_earlier_life_did_not_answer_does_not_count() -> None:
    state = ready_pair()
    ignore_for(state, D0, [100.0, 130.0])
    state.handle(Lost(D0, "killed"), 140.0)
    state.handle(RestartDue(D0), 140.0)
    state.handle(started(D0, epoch=2), 150.0)
    assert ignore_for(state, D0, [170.0, 180.0, 300.0]) == []


def test_a_draining_worker_that_hangs_is_killed_and_not_replaced() -> None:
    state = serving(P0, D0, D1)
    state.handle(ScaleTo(decode=1), 2.0)
    commands = ignore_for(state, D1, [100.0, 130.0, 170.0])
    assert KillWorker(D1, "it has answered nothing for 70 s") in commands
    assert ended(commands) == [D1]
    assert delays_of(commands) == begun(commands) == []


# Scaling


def test_scaling_out_starts_workers_with_new_names() -> None:
    state = ready_pair()
    assert begun(state.handle(ScaleTo(2, 3), 2.0)) == [P1, D1, D2]
    assert state.wanted == Wanted(2, 3)
    for slot in (P1, D1, D2):
        assert not state.settled
        become_serving(state, slot)
    assert state.settled


def test_scaling_to_the_same_numbers_is_nothing() -> None:
    state = ready_pair()
    assert state.handle(ScaleTo(1, 1), 2.0) == state.handle(ScaleTo(), 2.0) == []


def test_scaling_in_publishes_before_the_worker_is_drained() -> None:
    state = serving(P0, D0, D1)
    published, drain = state.handle(ScaleTo(decode=1), 2.0)
    states = {member.slot: member.state for member in published.workers}
    assert states == {P0: MemberState.READY, D0: MemberState.READY, D1: MemberState.DRAINING}
    assert drain.slot == D1


def test_scaling_in_takes_the_idle_worker_first_then_the_youngest() -> None:
    state = serving(P0, D0, D1, D2)
    state.handle(answered(D2, busy=3), 2.0)
    state.handle(answered(D1, busy=5), 2.0)
    assert drains(state.handle(ScaleTo(decode=2), 2.0)) == [D0]
    assert drains(state.handle(ScaleTo(decode=1), 2.0)) == [D2]


def test_scaling_in_ends_a_starting_worker_at_once() -> None:
    state = ready_pair()
    state.handle(ScaleTo(decode=2), 2.0)
    commands = state.handle(ScaleTo(decode=1), 3.0)
    assert (ended(commands), drains(commands)) == ([D1], [])
    assert state.settled


def test_scaling_in_keeps_a_worker_until_the_one_that_stays_serves_again() -> None:
    state = serving(P0, D0, D1, D2)
    state.handle(Lost(D0, "killed"), 2.0)
    commands = state.handle(ScaleTo(decode=1), 2.0)
    assert ended(commands) == [D0]
    assert len(drains(commands)) == 1


def test_a_drained_worker_is_forgotten_and_gives_its_place_back() -> None:
    state = serving(P0, D0, D1)
    state.handle(ScaleTo(decode=1), 2.0)
    published, end = state.handle(Drained(D1), 3.0)
    assert [member.slot for member in published.workers] == [P0, D0]
    assert end == EndWorker(D1)
    assert state.settled
    assert state.handle(Lost(D1, "it ended by itself"), 3.0) == []


def test_a_worker_that_dies_while_it_drains_is_not_replaced() -> None:
    state = serving(P0, D0, D1)
    state.handle(ScaleTo(decode=1), 2.0)
    commands = state.handle(Lost(D1, "killed"), 3.0)
    assert (ended(commands), delays_of(commands)) == ([D1], [])


def test_scaling_out_while_one_drains_starts_another_one() -> None:
    state = serving(P0, D0, D1)
    state.handle(ScaleTo(decode=1), 2.0)
    assert begun(state.handle(ScaleTo(decode=2), 3.0)) == [D2]
    assert member(state, D1).state is MemberState.DRAINING


def test_prefill_may_be_scaled_to_none() -> None:
    state = ready_pair()
    assert drains(state.handle(ScaleTo(prefill=0), 2.0)) == [P0]


@pytest.mark.parametrize("wrong", [ScaleTo(prefill=-1), ScaleTo(decode=0), ScaleTo(decode=10**6)])
def test_impossible_numbers_are_named_and_change_nothing(wrong: ScaleTo) -> None:
    state = ready_pair()
    with pytest.raises(InvalidField, match="must be between"):
        state.handle(wrong, 2.0)
    assert state.wanted == Wanted(1, 1)
    assert state.settled


def test_where_nobody_else_may_prefill_the_last_prefill_worker_stays() -> None:
    state = serving(P0, D0, D1, prefill_required=True)
    for wish in (ScaleTo(prefill=0), DrainWorker("prefill-0", replace=False)):
        with pytest.raises(PreconditionFailed, match="no prefill worker"):
            state.handle(wish, 2.0)
    with pytest.raises(PreconditionFailed, match="no prefill worker"):
        state.handle(FlipWorker("prefill-0"), 2.0)
    assert state.settled


def test_before_the_cluster_is_ready_nothing_can_be_changed() -> None:
    state = PoolState([P0, D0], now=0.0)
    with pytest.raises(PreconditionFailed, match="still starting"):
        state.handle(ScaleTo(decode=2), 1.0)


def test_mixed_workers_make_room_for_decode_workers_one_by_one() -> None:
    state = serving(M0, M1)
    assert begun(state.handle(ScaleTo(prefill=1), 2.0)) == [P0, Slot("decode", 2, "decode")]
    become_serving(state, P0)
    commands = become_serving(state, Slot("decode", 2, "decode"))
    assert drains(commands) == [M1]
    assert begun(commands) == []
    commands = state.handle(Drained(M1), 3.0)
    assert begun(commands) == [Slot("decode", 3, "decode")]
    assert drains(become_serving(state, Slot("decode", 3, "decode"))) == [M0]
    state.handle(Drained(M0), 4.0)
    assert state.settled
    assert state.wanted == Wanted(1, 2)


def test_without_prefill_workers_additional_workers_are_mixed_too() -> None:
    assert begun(serving(M0).handle(ScaleTo(decode=2), 2.0)) == [M1]


# Draining by name


def test_a_drained_worker_is_replaced_first() -> None:
    state = ready_pair()
    assert state.handle(DrainWorker("decode-0", limit_s=9.0), 2.0) == [StartWorker(D1, beside=D0)]
    assert member(state, D0).detail == "drains when 1 other decode workers serve"
    assert drains(state.handle(started(D1), 3.0)) == [], "no router reaches it yet"
    published, drain = state.handle(answered(D1), 4.0)
    assert isinstance(published, PublishWorkers)
    assert drain == BeginDrain(D0, 9.0)
    state.handle(Drained(D0), 5.0)
    assert state.settled
    assert slots(state) == {P0, D1}
    assert state.wanted == Wanted(1, 1)


def test_a_router_that_does_not_attach_holds_nothing_up_for_long() -> None:
    state = ready_pair()
    state.handle(DrainWorker("decode-0"), 2.0)
    state.handle(started(D1), 3.0)
    lonely = Answered(D1, 1, 0, attached=False)
    assert drains(state.handle(lonely, 4.0)) == []
    assert drains(state.handle(lonely, 3.0 + ATTACH_PATIENCE_S)) == [D0]


def test_a_replacement_that_can_not_start_leaves_the_worker_serving() -> None:
    state = ready_pair()
    state.handle(DrainWorker("decode-0"), 2.0)
    for now in range(3, 9):
        commands = state.handle(Lost(D1, "no room"), float(now))
        assert drains(commands) == []
        state.handle(RestartDue(D1), float(now))
    assert member(state, D0).state is MemberState.READY


def test_a_worker_that_dies_before_it_could_drain_has_its_replacement_already() -> None:
    state = ready_pair()
    state.handle(DrainWorker("decode-0"), 2.0)
    commands = state.handle(Lost(D0, "killed"), 3.0)
    assert (ended(commands), begun(commands), delays_of(commands)) == ([D0], [], [])
    become_serving(state, D1)
    assert state.settled


def test_draining_without_a_replacement_lowers_the_wanted_number() -> None:
    state = serving(P0, D0, D1)
    assert drains(state.handle(DrainWorker("decode-0", replace=False), 2.0)) == [D0]
    assert state.wanted == Wanted(1, 1)


def test_draining_twice_is_draining_once() -> None:
    state = serving(P0, D0, D1)
    state.handle(DrainWorker("decode-0", replace=False), 2.0)
    assert state.handle(DrainWorker("decode-0", replace=False), 2.0) == []
    assert state.wanted == Wanted(1, 1)


def test_the_last_decode_worker_is_not_drained_without_a_replacement() -> None:
    with pytest.raises(PreconditionFailed, match=r"no decode worker.*with a replacement"):
        ready_pair().handle(DrainWorker("decode-0", replace=False), 2.0)


def test_an_unknown_worker_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(NotFound, match="no worker 'decode-7'; there are decode-0, prefill-0"):
        ready_pair().handle(DrainWorker("decode-7"), 2.0)


def test_a_worker_that_is_not_ready_is_replaced_without_waiting() -> None:
    state = ready_pair()
    state.handle(Lost(D0, "killed"), 2.0)
    commands = state.handle(DrainWorker("decode-0"), 2.0)
    assert (ended(commands), begun(commands)) == ([D0], [D1])


# Role changes


def test_a_flipped_worker_drains_and_its_place_goes_to_one_of_the_other_role() -> None:
    state = serving(P0, P1, D0)
    assert drains(state.handle(FlipWorker("prefill-1"), 2.0)) == [P1]
    assert state.wanted == Wanted(1, 2)
    assert member(state, D1).state is MemberState.WAITING
    assert member(state, D1).detail == "waits for prefill-1, whose place it takes over"
    _, end, start = state.handle(Drained(P1), 3.0)
    assert (end, start) == (EndWorker(P1, heir=D1), StartWorker(D1))
    become_serving(state, D1)
    assert state.settled


def test_a_flipped_worker_that_dies_is_succeeded_all_the_same() -> None:
    state = serving(P0, P1, D0)
    state.handle(FlipWorker("prefill-1"), 2.0)
    _, end, start = state.handle(Lost(P1, "killed"), 3.0)
    assert (end, start) == (EndWorker(P1, heir=D1), StartWorker(D1))


def test_flipping_twice_is_flipping_once() -> None:
    state = serving(P0, P1, D0)
    state.handle(FlipWorker("prefill-1"), 2.0)
    assert state.handle(FlipWorker("prefill-1"), 2.0) == []
    assert state.wanted == Wanted(1, 2)


def test_a_successor_that_is_not_wanted_any_more_never_starts() -> None:
    state = serving(P0, P1, D0)
    state.handle(FlipWorker("prefill-1"), 2.0)
    assert ended(state.handle(ScaleTo(decode=1), 2.5)) == [D1]
    commands = state.handle(Drained(P1), 3.0)
    assert (ended(commands), begun(commands)) == ([P1], [])
    assert state.settled


def test_the_last_decode_worker_is_not_flipped() -> None:
    with pytest.raises(PreconditionFailed, match=r"no decode worker.*scale the decode pool up"):
        ready_pair().handle(FlipWorker("decode-0"), 2.0)


def test_a_mixed_worker_is_not_flipped() -> None:
    with pytest.raises(PreconditionFailed, match="mixed-0 prefills and decodes already"):
        serving(M0, M1).handle(FlipWorker("mixed-0"), 2.0)


# A node goes away


def test_a_worker_whose_node_goes_drains_at_once_and_another_one_is_started() -> None:
    state = ready_pair()
    commands = state.handle(EvictWorker("decode-0", 90.0), 5.0)
    assert BeginDrain(D0, 90.0) in commands
    assert begun(commands) == [D1]
    assert state.wanted == Wanted(1, 1)
    assert ended(state.handle(Drained(D0), 6.0)) == [D0]
    become_serving(state, D1)
    assert state.settled


def test_without_room_elsewhere_its_replacement_is_tried_again() -> None:
    state = ready_pair()
    state.handle(EvictWorker("decode-0"), 5.0)
    assert delays_of(state.handle(Lost(D1, "no room"), 15.0)) == [0.0]
    state.handle(RestartDue(D1), 15.0)
    assert delays_of(state.handle(Lost(D1, "no room"), 25.0)) == [0.5]


def test_one_that_only_starts_there_ends_at_once() -> None:
    state = ready_pair()
    state.handle(Lost(D0, "killed"), 5.0)
    commands = state.handle(EvictWorker("decode-0"), 6.0)
    assert ended(commands) == [D0]
    assert begun(commands) == [D1]


def test_one_that_was_to_leave_later_leaves_now() -> None:
    state = ready_pair()
    assert not drains(state.handle(DrainWorker("decode-0"), 5.0))
    assert drains(state.handle(EvictWorker("decode-0"), 6.0)) == [D0]
    assert not drains(state.handle(EvictWorker("decode-0"), 7.0)), "once is enough"


def test_who_was_to_take_its_place_over_gets_another_place() -> None:
    state = serving(P0, D0, D1)
    state.handle(FlipWorker("decode-1"), 5.0)
    state.handle(EvictWorker("decode-1"), 6.0)
    commands = state.handle(Drained(D1), 7.0)
    assert EndWorker(D1, heir=None) in commands
    assert begun(commands) == [P1]


# Any order of events


class PoolLife(RuleBasedStateMachine):
    """Workers die, start, hang and drain, operators change their minds, in any order."""

    FIRST = (P0, D0, D1)

    def __init__(self) -> None:
        super().__init__()
        self.state = PoolState(self.FIRST, now=0.0)
        self.now = 0.0
        self.starting = {command.slot for command in self.state.begin()}
        self.alive: dict[Slot, int] = {}
        self.draining: set[Slot] = set()
        self.restarting: set[Slot] = set()
        self.gone: set[Slot] = set()
        self.published: dict[Slot, tuple[int, bool]] = {}
        self.unattached: set[Slot] = set()
        self.evicted: set[Slot] = set()
        self.epochs = 0
        for slot in self.FIRST:
            self.become_ready(slot)

    def tell(self, event) -> None:
        for command in self.state.handle(event, self.now):
            self.carry_out(command)

    def carry_out(self, command) -> None:
        match command:
            case StartWorker(slot):
                assert slot not in self.starting | self.alive.keys() | self.gone
                self.restarting.discard(slot)
                self.starting.add(slot)
            case RestartLater(slot, delay_s):
                assert 0 <= delay_s <= MAX_DELAY_S
                assert slot not in self.draining
                self.restarting.add(slot)
            case PublishWorkers(workers):
                self.published = {
                    m.slot: (m.epoch, m.state is MemberState.DRAINING) for m in workers
                }
            case BeginDrain(slot):
                assert self.published[slot] == (self.alive[slot], True), "routers know first"
                self.draining.add(slot)
                others = {
                    s
                    for s in self.alive
                    if s.pool == slot.pool and s not in self.draining | self.unattached
                }
                spared = len(others) >= self.state.wanted.of(slot.pool)
                assert spared or slot in self.evicted
            case KillWorker(slot):
                self.forget(slot)
            case EndWorker(slot, heir):
                self.forget(slot)
                self.restarting.discard(slot)
                self.gone.add(slot)
                assert heir is None or heir not in self.alive
                assert heir is None or slot not in self.evicted
            case GiveUp():
                raise AssertionError("gave up a cluster that had been ready")

    def forget(self, slot: Slot) -> None:
        self.alive.pop(slot, None)
        for group in (self.starting, self.draining, self.unattached):
            group.discard(slot)

    def become_ready(self, slot: Slot) -> None:
        self.starting.discard(slot)
        self.epochs += 1
        self.alive[slot] = self.epochs
        self.unattached.add(slot)
        self.tell(started(slot, self.epochs))

    def pick(self, data: st.DataObject, slots) -> Slot:
        return data.draw(st.sampled_from(sorted(slots)))

    def wish(self, event) -> None:
        wanted, members = self.state.wanted, self.state.members
        try:
            self.tell(event)
        except CrossdockError:
            assert (self.state.wanted, self.state.members) == (wanted, members)

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.alive or self.starting)
    @rule(data=st.data())
    def one_dies(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.alive.keys() | self.starting)
        self.forget(slot)
        self.tell(Lost(slot, "dead"))

    @precondition(lambda self: self.restarting)
    @rule(data=st.data())
    def a_delay_ends(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.restarting)
        self.restarting.discard(slot)
        self.tell(RestartDue(slot))

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def one_starts(self, data: st.DataObject) -> None:
        self.become_ready(self.pick(data, self.starting))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), busy=st.integers(0, 9))
    def one_answers(self, data: st.DataObject, busy: int) -> None:
        slot = self.pick(data, self.alive)
        self.unattached.discard(slot)
        self.tell(Answered(slot, self.alive[slot], busy, attached=True))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), late=st.integers(0, 1))
    def one_does_not_answer(self, data: st.DataObject, late: int) -> None:
        slot = self.pick(data, self.alive)
        self.tell(NotAnswered(slot, self.alive[slot] - late))

    @precondition(lambda self: self.draining)
    @rule(data=st.data())
    def one_has_drained(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.draining)
        self.forget(slot)
        self.tell(Drained(slot))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def late_news_of_one_that_is_gone(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.gone)
        for event in (Lost(slot, "late"), Drained(slot), RestartDue(slot), started(slot, 10**6)):
            assert self.state.handle(event, self.now) == []

    @rule(prefill=st.integers(-1, 3), decode=st.integers(0, 4))
    def scale(self, prefill: int, decode: int) -> None:
        self.wish(ScaleTo(prefill, decode))

    @rule(data=st.data(), replace=st.booleans())
    def drain(self, data: st.DataObject, replace: bool) -> None:
        self.wish(DrainWorker(self.pick(data, slots(self.state)).name, replace))

    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        self.wish(FlipWorker(self.pick(data, slots(self.state)).name))

    @rule(data=st.data())
    def a_node_goes(self, data: st.DataObject) -> None:
        slot = self.pick(data, slots(self.state))
        self.evicted.add(slot)
        self.wish(EvictWorker(slot.name))

    @invariant()
    def routers_know_who_lives_and_who_drains(self) -> None:
        told = {slot: (epoch, slot in self.draining) for slot, epoch in self.alive.items()}
        assert self.published == told

    @invariant()
    def as_many_as_are_wanted_are_there_or_on_their_way(self) -> None:
        for pool in ("prefill", "decode"):
            active = [m for m in self.state.members if m.slot.pool == pool and m.active]
            assert len(active) == self.state.wanted.of(pool)
            for m in active:
                if m.state is MemberState.WAITING:
                    assert any(other.successor == m.slot for other in self.state.members)
                else:
                    assert m.slot in self.alive.keys() | self.starting | self.restarting

    @invariant()
    def nobody_runs_who_is_not_known(self) -> None:
        known = slots(self.state)
        assert self.alive.keys() | self.starting <= known
        assert not self.gone & known


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
