"""What a rank does of its leader's commands when several come at once, and at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from replica_in_process import FakeReceiver, FakeSender

from crossdock.v1 import rank_pb2 as pb
from kv_transfer.rank_ports import RankReceiver, RankSender
from worker.ranks.commands import RankCommands
from worker.ranks.connection import RankConnection
from worker.ranks.finished_steps import FinishedSteps

OFFER = pb.RankMessage(request=1, make_offer=pb.MakeOffer(stream="d-0"))
WITHDRAW = pb.RankMessage(withdraw=pb.WithdrawOffer(stream="d-0"))
OPEN = pb.RankMessage(request=1, open=pb.OpenEdges(stream="p-0"))
ABORT = pb.RankMessage(abort=pb.AbortCopies(stream="p-0"))
CLOSE = pb.RankMessage(request=2, close=pb.CloseEdges(stream="p-0"))


class Leader:
    """Takes answers."""

    def __init__(self) -> None:
        self.answers: list[pb.RankMessage] = []
        self.answered = asyncio.Event()

    def answer(self, request: pb.RankMessage, message: pb.RankMessage) -> None:
        self.answers.append(message)
        self.answered.set()


class SlowReceiver(FakeReceiver):
    """Its edges close when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()

    async def close(self, stream: str) -> None:
        self.closing.set()
        await self.may_close.wait()
        await super().close(stream)


def commands_of(
    leader: Leader, sender: RankSender | None = None, receiver: RankReceiver | None = None
) -> RankCommands:
    connection = cast(RankConnection, leader)
    return RankCommands(connection, FinishedSteps(), sender, receiver)


async def all_at_once(
    leader: Leader, commands: RankCommands, messages: Sequence[pb.RankMessage]
) -> None:
    """As if one read had brought them; returns with the first answer, a turn later."""
    for message in messages:
        assert commands.handle(message)
    await leader.answered.wait()
    await asyncio.sleep(0)


async def test_an_offer_that_is_withdrawn_at_once_does_not_stay() -> None:
    leader, sender = Leader(), FakeSender()
    await all_at_once(leader, commands_of(leader, sender=sender), [OFFER, WITHDRAW])
    assert sender.calls == [("withdraw", "d-0")]
    assert sender.offered == []


async def test_edges_that_are_aborted_at_once_are_there_to_be_aborted() -> None:
    leader, receiver = Leader(), FakeReceiver()
    await all_at_once(leader, commands_of(leader, receiver=receiver), [OPEN, ABORT])
    assert receiver.calls == [("open", "p-0", ""), ("abort", "p-0")]


async def test_nothing_begins_once_the_leader_is_gone() -> None:
    leader, receiver = Leader(), FakeReceiver()
    commands = commands_of(leader, receiver=receiver)
    commands.abort_all()
    assert commands.handle(OPEN)
    await commands.end()
    assert receiver.calls == []


async def test_a_command_that_comes_while_a_rank_ends_opens_nothing() -> None:
    leader, receiver = Leader(), SlowReceiver()
    commands = commands_of(leader, receiver=receiver)
    await all_at_once(leader, commands, [OPEN])
    commands.abort_all()
    ending = asyncio.create_task(commands.end())
    await receiver.closing.wait()
    other = pb.RankMessage(request=3, open=pb.OpenEdges(stream="p-1"))
    assert commands.handle(other)
    receiver.may_close.set()
    await ending
    assert receiver.calls == [("open", "p-0", ""), ("abort", "p-0"), ("close", "p-0")]


async def test_the_end_waits_for_edges_that_are_being_closed() -> None:
    leader, receiver = Leader(), SlowReceiver()
    commands = commands_of(leader, receiver=receiver)
    await all_at_once(leader, commands, [OPEN, CLOSE])
    await receiver.closing.wait()
    commands.abort_all()
    ending = asyncio.create_task(commands.end())
    await asyncio.sleep(0)
    assert not ending.done()
    receiver.may_close.set()
    await ending
    assert receiver.calls == [("open", "p-0", ""), ("close", "p-0")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("message", [OPEN, OFFER], ids=["open", "offer"])
async def test_a_task_that_never_began_is_no_trouble_at_the_end(message: pb.RankMessage) -> None:
    leader = Leader()
    commands = commands_of(leader, FakeSender(), FakeReceiver())
    commands.handle(message)
    commands.abort_all()
    await commands.end()
    assert leader.answers == []
