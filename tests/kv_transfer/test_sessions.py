"""Both ends of a handoff stream over real gRPC, with the lease rules on D and a scripted P."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc
import pytest
from replicas import (
    KEY,
    TOKENS,
    DecodeReplica,
    OtherSender,
    PrefillReplica,
    UnreachableSender,
    prefill_identity,
    serving,
)

from core.handoff import Ack, Cancel, Commit, Committed, FailureCause, LeaseLost, Reserve
from core.kv_layout import KVLayout
from core.request import AttemptKey, RequestKey, SamplingParams
from core.shards import ONE_RANK, ParallelShape
from core.step import SampledToken
from crossdock.v1 import handoff_pb2 as pb
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.handshake import WorkerIdentity, hello
from kv_transfer.prefill_session import Announcement
from kv_transfer.transport import TRANSPORTS

pytestmark = pytest.mark.processes

OTHER = AttemptKey(RequestKey("default", "other"), 1)
LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_size=4, dtype="float32")
PREFILL = prefill_identity(LAYOUT, ONE_RANK)


@pytest.fixture
async def decode() -> AsyncIterator[DecodeReplica]:
    async with serving(DecodeReplica(LAYOUT, ONE_RANK)) as replica:
        yield replica


@pytest.fixture(params=TRANSPORTS)
async def prefill(request: pytest.FixtureRequest) -> AsyncIterator[PrefillReplica]:
    """Offers one transport; each test runs with each."""
    replica = PrefillReplica(LAYOUT, ONE_RANK, [request.param])
    yield replica
    replica.close()


@pytest.fixture
async def plain_prefill() -> AsyncIterator[PrefillReplica]:
    """For what is the same over all transports."""
    replica = PrefillReplica(LAYOUT, ONE_RANK, ["shm"])
    yield replica
    replica.close()


async def test_a_prompt_is_reserved_pushed_and_committed(
    decode: DecodeReplica, prefill: PrefillReplica
) -> None:
    session = prefill.connect(decode.endpoint)
    lease = await prefill.reserve(session)
    offer = await prefill.senders[0].offer("another")
    assert session.transports == tuple(offer.transports)
    session.send(Announcement(KEY, lease, 0, (6, 2), (0, 0)))
    assert await prefill.heard.get() == Ack(KEY, lease, 2, ())
    session.send(Announcement(KEY, lease, 2, (4,), (0,)))
    session.send(Commit(KEY, lease, (SampledToken(42),), 0))
    assert await prefill.heard.get() == Ack(KEY, lease, 3, ())
    assert await prefill.heard.get() == Committed(KEY, lease)
    (start,) = decode.started
    assert (decode.blocks[0][start.block_ids] == prefill.model[[6, 2, 4]]).all()
    (edge,) = decode.handoffs.edge_counters
    assert (edge.peer, edge.blocks, edge.bytes) == ("P0", 3, 3 * LAYOUT.block_bytes)
    await session.close()


@dataclass
class HeldSender(OtherSender):
    """Describes nothing until it may."""

    may_describe: asyncio.Event = field(default_factory=asyncio.Event)

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        await self.may_describe.wait()
        return await super().describe(stream, destination, block_ids)


async def test_only_the_commit_waits_for_the_checksums_of_what_was_announced(
    decode: DecodeReplica, plain_prefill: PrefillReplica
) -> None:
    held = HeldSender(plain_prefill.senders[0])
    plain_prefill.senders[0] = held
    session = plain_prefill.connect(decode.endpoint)
    lease = await plain_prefill.reserve(session)
    session.send(Announcement(KEY, lease, 0, (6, 2, 4), (0, 0, 0)))
    session.send(Commit(KEY, lease, (SampledToken(42),), 0))
    # Said later and of another prompt; its answer shows that all before it was heard.
    session.send(Cancel(OTHER, "aborted by the router"))
    session.send(Reserve(OTHER, TOKENS, 0, SamplingParams(8)))
    assert await plain_prefill.heard.get() == LeaseLost(
        OTHER, 0, "cancelled: aborted by the router"
    )
    assert decode.leases.num_granted == 1
    held.may_describe.set()
    assert await plain_prefill.heard.get() == Ack(KEY, lease, 2, ())
    assert await plain_prefill.heard.get() == Ack(KEY, lease, 3, ())
    assert await plain_prefill.heard.get() == Committed(KEY, lease)
    await session.close()


async def test_what_is_announced_of_a_cancelled_attempt_is_refused(
    decode: DecodeReplica, plain_prefill: PrefillReplica
) -> None:
    session = plain_prefill.connect(decode.endpoint)
    lease = await plain_prefill.reserve(session)
    session.send(Cancel(KEY, "aborted by the router"))
    session.send(Announcement(KEY, lease, 0, (6,), (0,)))
    lost = await plain_prefill.heard.get()
    assert lost == LeaseLost(KEY, lease, "cancelled: aborted by the router")
    assert await plain_prefill.heard.get() == LeaseLost(KEY, lease, "no such lease")
    assert decode.pool.num_leased == 0
    await session.close()


async def test_a_prefill_worker_that_goes_away_leaves_nothing_leased(
    decode: DecodeReplica, prefill: PrefillReplica
) -> None:
    session = prefill.connect(decode.endpoint)
    await prefill.reserve(session)
    await session.close()
    await decode.lost.wait()
    decode.pool.validate()
    assert decode.pool.num_leased == 0


async def test_a_decode_worker_that_goes_away_is_told_of_once(
    decode: DecodeReplica, prefill: PrefillReplica
) -> None:
    session = prefill.connect(decode.endpoint)
    await prefill.reserve(session)
    await decode.server.stop(None)
    cause, _ = await prefill.lost.get()
    assert cause is FailureCause.DECODE_LOST
    await session.close()
    assert prefill.lost.empty()


async def test_a_decode_worker_that_is_not_there_is_told_of(plain_prefill: PrefillReplica) -> None:
    session = plain_prefill.connect("127.0.0.1:1")
    cause, detail = await plain_prefill.lost.get()
    assert cause is FailureCause.DECODE_LOST
    assert "UNAVAILABLE" in detail
    await session.close()


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (dataclasses.replace(PREFILL, model_hash=6), "model: D0 has"),
        (
            dataclasses.replace(PREFILL, layout=dataclasses.replace(LAYOUT, dtype="bfloat16")),
            "dtype: D0 has float32, P0 has bfloat16",
        ),
        (
            dataclasses.replace(PREFILL, layout=dataclasses.replace(LAYOUT, block_size=8)),
            "block size: D0 has 4, P0 has 8",
        ),
        (
            dataclasses.replace(PREFILL, layout=dataclasses.replace(LAYOUT, num_layers=3)),
            "block layout",
        ),
        (
            dataclasses.replace(PREFILL, shape=ParallelShape(1, 3)),
            "P0 states shape 1×3: .*1 to 2 stages",
        ),
        (
            dataclasses.replace(PREFILL, shape=ParallelShape(1, 2)),
            "P0 states 1 offers for the 2 ranks of shape 1×2",
        ),
        (
            dataclasses.replace(PREFILL, shape=ParallelShape(2**32 - 1, 2**32 - 1)),
            "must have 1 to 256 ranks",
        ),
        (dataclasses.replace(PREFILL, shape=ParallelShape(0, 1)), "must have 1 to 256 ranks"),
        (dataclasses.replace(PREFILL, worker="P" * 1000), "name of the prefill worker"),
    ],
    ids=["model", "dtype", "block size", "layout", "stages", "offers", "huge", "none", "name"],
)
async def test_what_differs_or_can_not_be_is_refused_by_name(
    decode: DecodeReplica, plain_prefill: PrefillReplica, identity: WorkerIdentity, named: str
) -> None:
    session = plain_prefill.connect(decode.endpoint, identity)
    cause, detail = await plain_prefill.lost.get()
    assert cause is FailureCause.INCOMPATIBLE
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(detail)
    await session.close()


class LyingDecode(handoff_pb2_grpc.HandoffServicer):
    """Answers every hello with the same words."""

    def __init__(self, reply: pb.HelloReply) -> None:
        self.reply = reply

    async def Session(
        self, request_iterator: AsyncIterator[pb.PrefillMessage], context: object
    ) -> AsyncIterator[pb.DecodeMessage]:
        await anext(request_iterator)
        yield pb.DecodeMessage(hello=self.reply)
        async for _ in request_iterator:
            pass


def reply(tensor: int, pipeline: int, transports: int) -> pb.HelloReply:
    return pb.HelloReply(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        transports=["shm"] * transports,
    )


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (reply(1, 3, 3), "shape 1×3"),
        (reply(2**31, 2**31, 1), "must have 1 to 256 ranks"),
        (reply(0, 0, 0), "must have 1 to 256 ranks"),
        (reply(1, 2, 1), "1 transports for 2 edges"),
    ],
    ids=["stages", "huge", "nothing", "transports"],
)
async def test_a_decode_worker_that_states_what_can_not_be_is_left(
    plain_prefill: PrefillReplica, lie: pb.HelloReply, named: str
) -> None:
    server = grpc.aio.server()
    handoff_pb2_grpc.add_HandoffServicer_to_server(LyingDecode(lie), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    session = plain_prefill.connect(f"127.0.0.1:{port}")
    cause, detail = await plain_prefill.lost.get()
    assert cause is FailureCause.INCOMPATIBLE
    assert named in detail
    await session.close()
    await server.stop(None)


async def test_a_piece_without_a_checksum_for_each_edge_ends_the_stream(
    decode: DecodeReplica, plain_prefill: PrefillReplica
) -> None:
    offer = await plain_prefill.senders[0].offer("by hand")
    piece = pb.Piece(block_id=1, checksums=[1, 2])
    async with grpc.aio.insecure_channel(decode.endpoint) as channel:
        call = handoff_pb2_grpc.HandoffStub(channel).Session()
        await call.write(pb.PrefillMessage(hello=hello(PREFILL, 11, [offer])))
        assert (await call.read()).hello.transports == ["shm"]
        await call.write(pb.PrefillMessage(announce=pb.Announce(pieces=[piece])))
        assert await call.read() is grpc.aio.EOF
    await decode.lost.wait()


async def test_a_way_that_does_not_work_is_refused_with_the_reason(
    decode: DecodeReplica, plain_prefill: PrefillReplica
) -> None:
    working = plain_prefill.senders[0]
    plain_prefill.senders[0] = UnreachableSender(working)
    session = plain_prefill.connect(decode.endpoint)
    cause, detail = await plain_prefill.lost.get()
    assert cause is FailureCause.INCOMPATIBLE
    assert "shm: the memory can't be reached" in detail
    await session.close()
    (told,) = decode.handoffs.edge_counters
    assert (told.peer, told.transport, told.detail) == ("P0", "refused", detail)
    plain_prefill.senders[0] = working
    again = plain_prefill.connect(decode.endpoint)
    await plain_prefill.reserve(again)
    assert {edge.transport for edge in decode.handoffs.edge_counters} == {"shm"}
    await again.close()


async def test_blocks_that_moved_on_before_they_were_described_are_refused(
    decode: DecodeReplica, prefill: PrefillReplica
) -> None:
    session = prefill.connect(decode.endpoint)
    lease = await prefill.reserve(session)
    prefill.pools[0].generations[6] = 1
    session.send(Announcement(KEY, lease, 0, (6,), (0,)))
    assert await prefill.heard.get() == Ack(KEY, lease, 0, resend=(0,))
    await session.close()


async def test_blocks_that_can_not_be_described_end_the_stream_with_their_error(
    decode: DecodeReplica, plain_prefill: PrefillReplica
) -> None:
    seen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(dict(context)))
    session = plain_prefill.connect(decode.endpoint)
    lease = await plain_prefill.reserve(session)
    session.send(Announcement(KEY, lease, 0, (99,), (0,)))
    cause, detail = await plain_prefill.lost.get()
    assert cause is FailureCause.INTERNAL
    assert "99" in detail
    await session.close()
    gc.collect()
    await asyncio.sleep(0)
    assert seen == []
