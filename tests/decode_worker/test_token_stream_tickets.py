"""Whose tickets a decode worker takes, over gRPC. No engine, no router."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from core.request import AttemptKey, RequestKey
from crossdock.v1 import token_stream_pb2 as pb
from crossdock.v1 import token_stream_pb2_grpc
from decode_worker.readable_answers import ReadableAnswers
from decode_worker.token_streams import TokenStreams
from wire.attempts import key_to_wire
from wire.tickets import KEY_BYTES, sign

HERE = {"router_id": "r", "worker": "decode-0", "epoch": 7}
KEY = bytes(range(KEY_BYTES))
ATTEMPT = AttemptKey(RequestKey("alice", "one"), 1)


@asynccontextmanager
async def stub() -> AsyncIterator[token_stream_pb2_grpc.TokenStreamStub]:
    """Of a worker on which the attempt of all tickets has ended, with no output."""
    answers = ReadableAnswers()
    answers.open(ATTEMPT, 1, KEY, 60.0, time.monotonic())
    answers.completed(ATTEMPT, time.monotonic())
    streams = TokenStreams(answers, "decode-0", 7, lambda router: KEY, lambda key: None)
    await streams.start("127.0.0.1", 0, None)
    try:
        async with grpc.aio.insecure_channel(streams.address) as channel:
            yield token_stream_pb2_grpc.TokenStreamStub(channel)
    finally:
        await streams.stop(0.0)


def ticket(**other: object) -> bytes:
    claims = pb.TicketClaims(key=key_to_wire(ATTEMPT), **{**HERE, **other})
    return sign(claims, KEY)


async def test_a_ticket_of_its_router_is_good() -> None:
    async with stub() as worker:
        assert len([r async for r in worker.Read(pb.ReadRequest(ticket=ticket()))]) == 1


@pytest.mark.parametrize(
    "refused",
    [
        ticket(worker="decode-1"),
        ticket(epoch=8),
        bytes(32) + ticket()[32:],
        ticket()[:32],
        b"",
    ],
    ids=["another worker's", "of another life", "forged", "without claims", "empty"],
)
async def test_any_other_is_refused(refused: bytes) -> None:
    async with stub() as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.Read(pb.ReadRequest(ticket=refused)).read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
