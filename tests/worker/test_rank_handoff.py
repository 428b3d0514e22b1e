"""The handoff's commands to other ranks: what passes, and what waits for the rank's own engine."""

from __future__ import annotations

import asyncio

import pytest
from replica_in_process import (
    FakeEngine,
    InProcessReplica,
    Member,
    nothing,
    replica_of,
    step,
)

from core.errors import Incompatible, InternalError, Unavailable
from core.handoff import Piece
from core.lease_events import PieceCopy
from core.shards import ParallelShape
from crossdock.v1 import handoff_pb2
from kv_transfer.rank_ports import EdgeChoice, RankCopied
from worker.ranks.executor import RankExecutor
from worker.ranks.remote_receiver import RemoteRankReceiver
from worker.ranks.remote_sender import RemoteRankSender

COPIES = (PieceCopy(3, Piece(7, 2**40, (2**64 - 1, 5)), 9), PieceCopy(4, Piece(8, 1, ()), 2))


async def test_offers_and_checksums_of_another_rank() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        sender = RemoteRankSender(replica.group, 1)
        assert list((await sender.offer("d-0/1")).transports) == ["for d-0/1"]
        described = await sender.describe("d-0/1", ParallelShape(3, 2), [4, 6])
        sender.withdraw("d-0/1")
        assert described == [[40, 2**64 - 5], [60, 2**64 - 7]]
        assert await sender.describe("d-0/1", ParallelShape(), []) == []
        assert member.sender.calls[:2] == [
            ("describe", "d-0/1", ParallelShape(3, 2), (4, 6)),
            ("withdraw", "d-0/1"),
        ]


async def test_copies_into_another_rank() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        receiver = RemoteRankReceiver(replica.group, 1)
        opened = await receiver.open("p-0", handoff_pb2.Hello(worker="p-0"))
        assert opened == (EdgeChoice(2, 1, "shm", "why"),)
        assert await receiver.copy("p-0", COPIES) == RankCopied((3, 4), ())
        receiver.abort("p-0")
        await receiver.close("p-0")
        assert member.receiver.calls == [
            ("open", "p-0", "p-0"),
            ("copy", "p-0", COPIES),
            ("abort", "p-0"),
            ("close", "p-0"),
        ]


async def test_a_refusal_keeps_its_kind_and_reasons() -> None:
    async with replica_of(2, 1) as replica:
        (await replica.join(1, FakeEngine())).receiver.refuse = "shm: other host; tcp: refused"
        receiver = RemoteRankReceiver(replica.group, 1)
        with pytest.raises(Incompatible, match="shm: other host; tcp: refused") as refused:
            await receiver.open("p-0", handoff_pb2.Hello())
        assert refused.value.reason == "NO_COMMON_TRANSPORT"


async def test_a_defect_on_the_rank_is_told_as_one() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        member.sender.offer = None  # type: ignore[method-assign, assignment]
        with pytest.raises(InternalError, match="TypeError"):
            await RemoteRankSender(replica.group, 1).offer("d-0")


async def slow(replica: InProcessReplica) -> Member:
    """A rank that still computes a step which the leading one has the result of."""
    member = await replica.join(1, FakeEngine(blocked=True))
    engine = FakeEngine(draws=1)
    executor = RankExecutor(
        replica.group, replica.settings.shape, engine.execute, engine.generations, 4
    )
    await asyncio.wrap_future(executor.submit(step(), nothing))
    return member


async def test_a_rank_looks_at_blocks_after_the_steps_that_the_leader_has_completed() -> None:
    async with replica_of(2, 1) as replica:
        member = await slow(replica)
        sender = RemoteRankSender(replica.group, 1)
        describing = asyncio.create_task(sender.describe("d-0", ParallelShape(), [1]))
        # Answered behind it on the same connection.
        await sender.offer("d-0")
        assert not member.sender.calls
        member.engine.release.set()
        assert await describing == [[10, 2**64 - 2]]


async def test_a_copy_that_waits_for_a_step_copies_nothing_once_it_is_aborted() -> None:
    async with replica_of(2, 1) as replica:
        member = await slow(replica)
        receiver = RemoteRankReceiver(replica.group, 1)
        copying = asyncio.create_task(receiver.copy("p-0", COPIES))
        await asyncio.sleep(0)
        receiver.abort("p-0")
        closing = asyncio.create_task(receiver.close("p-0"))
        # Answered behind it on the same connection.
        await RemoteRankSender(replica.group, 1).offer("d-0")
        member.engine.release.set()
        assert await copying == RankCopied((), (3, 4))
        await closing
        assert member.receiver.calls == [("abort", "p-0"), ("close", "p-0")]


async def test_a_rank_that_is_lost_copied_nothing_and_is_closed() -> None:
    async with replica_of(2, 1) as replica:
        await slow(replica)
        receiver, sender = RemoteRankReceiver(replica.group, 1), RemoteRankSender(replica.group, 1)
        copying = asyncio.create_task(receiver.copy("p-0", COPIES))
        await asyncio.sleep(0)
        replica.group.fail(Unavailable("rank 1 is lost", reason="RANK_LOST"))
        copied = await copying
        assert (copied.good, copied.bad) == ((), (3, 4))
        assert "ended" in copied.lost
        receiver.abort("p-0")
        await receiver.close("p-0")
        sender.withdraw("d-0")
        with pytest.raises(ConnectionError):
            await sender.offer("d-0")


async def test_a_rank_whose_leader_is_gone_aborts_its_copies() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        await RemoteRankReceiver(replica.group, 1).open("p-0", handoff_pb2.Hello())
        replica.group.fail(Unavailable("gone", reason="RANK_LOST"))
        with pytest.raises(Unavailable, match="lost its leading rank"):
            await member.follower.ended
        assert ("abort", "p-0") in member.receiver.calls
        await member.follower.stop()
        assert ("close", "p-0") in member.receiver.calls
