"""The rules of both ends of an NCCL edge against each other, in every order that can happen."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.block_region import BlockRegion
from kv_transfer import nccl_events as ev
from kv_transfer.nccl_receiver_rules import Limits, ReceiverRules
from kv_transfer.nccl_receiver_rules import Phase as ReceiverPhase
from kv_transfer.nccl_sender_rules import Phase as SenderPhase
from kv_transfer.nccl_sender_rules import SenderRules

REGION = BlockRegion((0, 1), (0, 1))
BATCHES = st.lists(st.integers(1, 3), max_size=3).map(
    lambda sizes: tuple(tuple((i, 7) for i in range(size)) for size in sizes)
)


class TwoEnds:
    """Both rules, the messages between them, and what NCCL would do with their calls."""

    def __init__(self) -> None:
        self.decode, self.prefill = ReceiverRules(), SenderRules()
        self.to_prefill: deque[ev.Event] = deque()
        self.to_decode: deque[ev.Event] = deque()
        self.receives: list[int] = []
        self.sends: list[int] = []
        self.stored: list[int] = []
        self.finished = 0
        self.has_communicator = {"decode": False, "prefill": False}

    def give_decode(self, event: ev.Event) -> None:  # noqa: C901 - one case for each command
        for command in self.decode.handle(event, 0.0):
            match command:
                case ev.MakeRoom():
                    self.to_decode.append(ev.RoomMade())
                case ev.Invite(opening):
                    self.to_prefill.append(ev.Heard(ev.Open(opening, b"", REGION, 1)))
                case ev.Join():
                    self.open("decode")
                    self.to_decode.append(ev.Joined())
                case ev.Say(message):
                    self.check_go(message)
                    self.to_prefill.append(ev.Heard(message))
                case ev.Receive(_, rows):
                    assert self.has_communicator["decode"]
                    self.receives.append(rows)
                case ev.AwaitReceive(number):
                    assert len(self.sends) == len(self.receives)
                    self.to_decode.append(ev.Landed(number))
                case ev.CheckProbe():
                    self.to_decode.append(ev.ProbeSeen(True))
                case ev.Store(number, present):
                    self.stored.append(len(present))
                    self.to_decode.append(ev.Stored(number))
                case ev.Finish():
                    self.finished += 1
                case ev.Destroy():
                    self.shut("decode")
                    self.to_decode.append(ev.Destroyed())
                case _:
                    raise AssertionError(command)

    def give_prefill(self, event: ev.Event) -> None:
        for command in self.prefill.handle(event, 0.0):
            match command:
                case ev.MakeRoom():
                    self.to_prefill.appendleft(ev.RoomMade())
                case ev.Join():
                    self.open("prefill")
                    self.to_prefill.appendleft(ev.Joined())
                case ev.SendProbe():
                    self.sends.append(1)
                    self.to_prefill.appendleft(ev.SendOver(ev.PROBE, ()))
                case ev.Send(number, pieces):
                    # NCCL matches by order: this is the receive that D has enqueued for it.
                    assert self.receives[len(self.sends)] == len(pieces)
                    self.sends.append(len(pieces))
                    self.to_prefill.appendleft(ev.SendOver(number, (True,) * len(pieces)))
                case ev.Say(message):
                    self.to_decode.append(ev.Heard(message))
                case ev.Destroy():
                    self.shut("prefill")
                    self.to_prefill.appendleft(ev.Destroyed())
                case _:
                    raise AssertionError(command)

    def check_go(self, message: object) -> None:
        """The receive of a batch is enqueued before its go; that of the probe right after."""
        if isinstance(message, ev.Go):
            ahead = message.number != ev.PROBE
            assert len(self.receives) == len(self.sends) + ahead

    def open(self, side: str) -> None:
        assert not self.has_communicator[side]
        self.has_communicator[side] = True

    def shut(self, side: str) -> None:
        assert self.has_communicator[side]
        assert len(self.sends) == len(self.receives)
        self.has_communicator[side] = False

    def step(self, wants_prefill: bool) -> bool:
        queues = [(self.to_decode, self.give_decode), (self.to_prefill, self.give_prefill)]
        for queue, give in queues[::-1] if wants_prefill else queues:
            if queue:
                give(queue.popleft())
                return True
        return False


@given(st.lists(st.one_of(BATCHES, st.sampled_from(["room for D", "room for P"]))), st.data())
def test_every_batch_is_received_once_and_sends_match_receives(
    wishes: list[object], data: st.DataObject
) -> None:
    ends, jobs, sizes = TwoEnds(), 0, []
    for wish in wishes:
        if wish == "room for D":
            if ends.decode.is_idle:
                ends.give_decode(ev.RoomWanted())
        elif wish == "room for P":
            # Said at any moment; it may cross other messages.
            ends.to_decode.append(ev.Heard(ev.CloseWanted(ends.prefill.opening)))
        else:
            assert isinstance(wish, tuple)
            while ends.step(data.draw(st.booleans())):
                pass
            ends.give_decode(ev.CopyWanted(wish))
            jobs += 1
            sizes += [len(batch) for batch in wish]
        for _ in range(data.draw(st.integers(0, 5))):
            ends.step(data.draw(st.booleans()))
    while ends.step(True):
        pass
    assert ends.stored == sizes
    assert ends.finished == jobs
    assert ends.decode.is_idle
    assert ends.prefill.is_idle


def opened() -> TwoEnds:
    ends = TwoEnds()
    ends.give_decode(ev.CopyWanted(()))
    while ends.step(False):
        pass
    return ends


@pytest.mark.parametrize(
    "message",
    [
        ev.Go(1, 2, ((0, 0),)),
        ev.Go(2, 1, ((0, 0),)),
        ev.Go(1, 1, ()),
        ev.Open(2, b"", REGION, 1),
        ev.Close(9),
    ],
)
def test_the_prefill_worker_fences_at_what_a_decode_worker_never_says(
    message: ev.FromDecode,
) -> None:
    rules = opened().prefill
    (command,) = rules.handle(ev.Heard(message), 0.0)
    assert isinstance(command, ev.Fence)
    assert rules.phase is SenderPhase.FENCED
    assert rules.handle(ev.Heard(ev.Go(1, 1, ((0, 0),))), 0.0) == []


@pytest.mark.parametrize(
    "message",
    [ev.Sent(1, 2, (True,)), ev.Sent(2, 1, (True,)), ev.Sent(1, 1, (True, True)), ev.Joining(1)],
)
def test_the_decode_worker_fences_at_what_a_prefill_worker_never_says(
    message: ev.FromPrefill,
) -> None:
    rules = opened().decode
    rules.handle(ev.CopyWanted((((3, 7),),)), 0.0)
    fence, finish = rules.handle(ev.Heard(message), 0.0)
    assert isinstance(fence, ev.Fence)
    assert finish == ev.Finish()
    assert rules.phase is ReceiverPhase.FENCED


def test_each_phase_that_waits_for_the_peer_has_a_deadline() -> None:
    rules = ReceiverRules(Limits(room=1, join=2, batch=4))
    seen = {}
    batch = ((0, 0),)
    for event in (
        ev.CopyWanted((batch,)),
        ev.RoomMade(),
        ev.Heard(ev.Joining(1)),
        ev.Joined(),
        ev.ProbeSeen(True),
        ev.Stored(1),
    ):
        rules.handle(event, 10.0)
        seen[rules.phase] = rules.deadline
    assert seen == {
        ReceiverPhase.MAKING_ROOM: None,
        ReceiverPhase.INVITING: 13.0,
        ReceiverPhase.JOINING: 12.0,
        ReceiverPhase.TESTING: 12.0,
        ReceiverPhase.RECEIVING: 14.0,
        ReceiverPhase.IDLE: None,
    }
