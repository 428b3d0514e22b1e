"""Handoffs between replicas of several ranks: any split to any other, what one rank can break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from replicas import (
    KEY,
    DecodeReplica,
    OtherReceiver,
    OtherSender,
    UnreachableSender,
    prefilling,
    serving,
)
from whole_handoff import hand_over, landed_bit_for_bit

from core.handoff import Ack, Commit, Committed, FailureCause
from core.kv_layout import KVLayout
from core.lease_events import PieceCopy
from core.shards import ONE_RANK, ParallelShape
from core.step import SampledToken
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.prefill_session import Announcement
from kv_transfer.rank_ports import EdgeChoice, RankCopied

pytestmark = pytest.mark.processes

EIGHT_HEADS = KVLayout(num_layers=2, num_kv_heads=8, head_dim=2, block_size=4, dtype="bfloat16")
THREE_HEADS = KVLayout(num_layers=5, num_kv_heads=3, head_dim=2, block_size=4, dtype="float32")
TENSOR = [ParallelShape(n) for n in (1, 2, 4, 8)]
SHAPES = [ParallelShape(*shape) for shape in ((1, 1), (3, 1), (1, 2), (3, 2), (1, 5))]
TWO = ParallelShape(2)
STAGES = ParallelShape(1, 2)


@pytest.mark.parametrize("theirs", TENSOR, ids=str)
@pytest.mark.parametrize("ours", TENSOR, ids=str)
async def test_eight_heads_cross_between_all_tensor_sizes(
    ours: ParallelShape, theirs: ParallelShape
) -> None:
    async with (
        prefilling(EIGHT_HEADS, ours) as prefill,
        serving(DecodeReplica(EIGHT_HEADS, theirs)) as decode,
    ):
        session = prefill.connect(decode.endpoint)
        await hand_over(prefill, session)
        assert landed_bit_for_bit(prefill, decode)
        await session.close()


@pytest.mark.parametrize("theirs", SHAPES, ids=str)
@pytest.mark.parametrize("ours", SHAPES, ids=str)
async def test_three_heads_and_five_layers_cross_between_all_shapes(
    ours: ParallelShape, theirs: ParallelShape
) -> None:
    async with (
        prefilling(THREE_HEADS, ours) as prefill,
        serving(DecodeReplica(THREE_HEADS, theirs)) as decode,
    ):
        session = prefill.connect(decode.endpoint)
        await hand_over(prefill, session)
        assert landed_bit_for_bit(prefill, decode)
        await session.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
async def test_each_edge_is_named_and_counted(transport: str) -> None:
    async with (
        prefilling(EIGHT_HEADS, TWO, transport) as prefill,
        serving(DecodeReplica(EIGHT_HEADS, STAGES)) as decode,
    ):
        session = prefill.connect(decode.endpoint)
        await hand_over(prefill, session)
        assert session.transports == (transport,) * 4
        edges = decode.handoffs.edge_counters
        assert [(e.source, e.destination) for e in edges] == [(0, 0), (1, 0), (0, 1), (1, 1)]
        quarter = EIGHT_HEADS.block_bytes // 4
        assert {(e.peer, e.transport, e.blocks, e.bytes) for e in edges} == {
            ("P0", transport, 3, 3 * quarter)
        }
        await session.close()


async def test_one_prefill_worker_serves_decode_workers_of_different_shapes() -> None:
    async with (
        prefilling(EIGHT_HEADS, TWO) as prefill,
        serving(DecodeReplica(EIGHT_HEADS, STAGES)) as staged,
        serving(DecodeReplica(EIGHT_HEADS, ParallelShape(4))) as wide,
    ):
        sessions = [prefill.connect(decode.endpoint) for decode in (staged, wide)]
        for decode, session in zip((staged, wide), sessions, strict=True):
            await hand_over(prefill, session)
            assert landed_bit_for_bit(prefill, decode)
            await session.close()


def copy_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kv-copy")]


async def test_one_edge_that_can_not_be_opened_refuses_the_whole() -> None:
    async with (
        prefilling(EIGHT_HEADS, TWO) as prefill,
        serving(DecodeReplica(EIGHT_HEADS, STAGES)) as decode,
    ):
        working = prefill.senders[1]
        prefill.senders[1] = UnreachableSender(working)
        session = prefill.connect(decode.endpoint)
        cause, detail = await prefill.lost.get()
        assert cause is FailureCause.INCOMPATIBLE
        for rank in (0, 1):
            expected = f"to rank {rank}: no KV transport from rank 1 of P0 works: shm: the memory"
            assert expected in detail
        assert "rank 0 of P0" not in detail
        await session.close()
        prefill.senders[1] = working
        session = prefill.connect(decode.endpoint)
        await hand_over(prefill, session)
        await session.close()
    for thread in copy_threads():
        thread.join()


class RefusingReceiver(OtherReceiver):
    async def open(self, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        raise RuntimeError("the rank is gone")


async def test_a_rank_that_fails_while_edges_open_ends_the_stream_and_closes_the_others() -> None:
    async with prefilling(EIGHT_HEADS, ONE_RANK) as prefill:
        decode = DecodeReplica(EIGHT_HEADS, TWO)
        decode.receivers[1] = RefusingReceiver(decode.receivers[1])
        async with serving(decode):
            session = prefill.connect(decode.endpoint)
            cause, _ = await prefill.lost.get()
            assert cause is FailureCause.DECODE_LOST
            await session.close()
    for thread in copy_threads():
        thread.join()


class FailingSender(OtherSender):
    async def offer(self, stream: str) -> pb.RankOffer:
        raise ConnectionError("rank 1 is gone")


@dataclass
class WatchedSender(OtherSender):
    withdrawn: list[str] = field(default_factory=list)

    def withdraw(self, stream: str) -> None:
        self.withdrawn.append(stream)
        super().withdraw(stream)


async def test_offers_are_withdrawn_however_the_stream_ends() -> None:
    async with (
        prefilling(EIGHT_HEADS, TWO) as prefill,
        serving(DecodeReplica(EIGHT_HEADS, ONE_RANK)) as decode,
    ):
        working = prefill.senders[1]
        watched = WatchedSender(prefill.senders[0])
        prefill.senders = [watched, FailingSender(working)]
        session = prefill.connect(decode.endpoint)
        cause, detail = await prefill.lost.get()
        assert (cause, "rank 1 is gone" in detail) == (FailureCause.INTERNAL, True)
        assert len(watched.withdrawn) == 1
        prefill.senders = [watched, working]
        session = prefill.connect(decode.endpoint)
        await prefill.reserve(session)
        await session.close()
        assert len(watched.withdrawn) == 2


@dataclass
class DamagingSender(OtherSender):
    """Describes block 2 wrongly so many times, as if its bytes were damaged on their way."""

    times: int = 1

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        rows = await super().describe(stream, destination, block_ids)
        if 2 in block_ids and self.times:
            self.times -= 1
            rows[list(block_ids).index(2)][-1] ^= 1
        return rows


@pytest.mark.parametrize(("times", "computed"), [(1, 10), (2, 4)])
async def test_a_damaged_part_is_asked_for_once_more_then_given_up(
    times: int, computed: int
) -> None:
    async with (
        prefilling(EIGHT_HEADS, TWO) as prefill,
        serving(DecodeReplica(EIGHT_HEADS, STAGES)) as decode,
    ):
        prefill.senders[1] = DamagingSender(prefill.senders[1], times)
        session = prefill.connect(decode.endpoint)
        lease = await prefill.reserve(session)
        session.send(Announcement(KEY, lease, 0, (6, 2), (0, 0)))
        assert await prefill.heard.get() == Ack(KEY, lease, 1, resend=(1,))
        session.send(Announcement(KEY, lease, 2, (4,), (0,)))
        assert await prefill.heard.get() == Ack(KEY, lease, 1, ())
        session.send(Announcement(KEY, lease, 1, (2,), (0,)))
        assert await prefill.heard.get() == Ack(KEY, lease, 3 if times == 1 else 1, ())
        session.send(Commit(KEY, lease, (SampledToken(42),), 0))
        assert await prefill.heard.get() == Committed(KEY, lease)
        assert decode.started[0].computed == computed
        damaged = {
            (e.source, e.destination): e.resent_blocks for e in decode.handoffs.edge_counters
        }
        assert damaged == {(0, 0): 0, (1, 0): 0, (0, 1): 0, (1, 1): times}
        await session.close()


class DyingReceiver(OtherReceiver):
    """Its way is gone in its first copy."""

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        return RankCopied((), tuple(item.index for item in copies), lost="rank 1 is gone")


async def test_a_way_that_is_lost_in_a_copy_ends_the_stream_and_frees_everything() -> None:
    async with prefilling(EIGHT_HEADS, TWO) as prefill:
        decode = DecodeReplica(EIGHT_HEADS, TWO)
        decode.receivers[1] = DyingReceiver(decode.receivers[1])
        async with serving(decode):
            session = prefill.connect(decode.endpoint)
            lease = await prefill.reserve(session)
            session.send(Announcement(KEY, lease, 0, (6,), (0,)))
            cause, _ = await prefill.lost.get()
            assert cause is FailureCause.DECODE_LOST
            await decode.lost.wait()
            decode.pool.validate()
            assert (decode.pool.num_leased, decode.pool.num_quarantined) == (0, 0)
            await session.close()


@dataclass
class SlowReceiver(OtherReceiver):
    """Copies, and tells of it only when it may; hears of an abort as every other."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: bool = False

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        self.started.set()
        await self.may_end.wait()
        return await super().copy(stream, copies)

    def abort(self, stream: str) -> None:
        self.aborted = True
        super().abort(stream)


async def test_blocks_are_quarantined_until_the_last_rank_has_ended_its_copy() -> None:
    async with prefilling(EIGHT_HEADS, TWO) as prefill:
        decode = DecodeReplica(EIGHT_HEADS, TWO)
        decode.receivers[1] = slow = SlowReceiver(decode.receivers[1])
        async with serving(decode):
            session = prefill.connect(decode.endpoint)
            lease = await prefill.reserve(session)
            session.send(Announcement(KEY, lease, 0, (6, 2), (0, 0)))
            await slow.started.wait()
            await session.close()
            await decode.lost.wait()
            assert slow.aborted
            assert (decode.pool.num_leased, decode.pool.num_quarantined) == (0, 2)
            before = decode.blocks[1].copy()
            slow.may_end.set()
            await decode.server.stop(None)
            await decode.handoffs.close()
            assert decode.pool.num_quarantined == 0
            # It was aborted before it began: nothing landed behind the end of the stream.
            assert np.array_equal(decode.blocks[1], before)
            (copied,) = decode.copied
            assert (copied.good, copied.bad) == ((), (0, 1))


async def test_a_peer_that_leaves_while_edges_open_leaves_none_open() -> None:
    opening, may_open = asyncio.Event(), asyncio.Event()

    class SlowToOpen(OtherReceiver):
        async def open(self, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
            opening.set()
            await may_open.wait()
            return await super().open(stream, hello)

    async with prefilling(EIGHT_HEADS, TWO) as prefill:
        decode = DecodeReplica(EIGHT_HEADS, TWO)
        decode.receivers[1] = SlowToOpen(decode.receivers[1])
        async with serving(decode):
            session = prefill.connect(decode.endpoint)
            await opening.wait()
            await session.close()
            await decode.server.stop(None)
            may_open.set()
            await decode.handoffs.close()
    for thread in copy_threads():
        thread.join()
