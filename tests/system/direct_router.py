"""Requests straight to one worker's `Attach`, as a router makes them, without a router."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from cluster.worker_host import WorkerPlace
from core.request import SamplingParams
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1 import worker_pb2_grpc
from wire.attempts import sampling_to_wire, tokens_to_wire


class DirectRouter:
    """One stream to one worker."""

    def __init__(self, stub: worker_pb2_grpc.WorkerStub, call: grpc.aio.StreamStreamCall) -> None:
        self._stub = stub
        self._call = call

    async def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[int]]:
        """The answers to all prompts, asked at the same time and computed by this worker alone."""
        for i, prompt in enumerate(prompts):
            await self._open(i, params, mode=pb.Open.LOCAL, token_ids=_tokens(prompt))
        return await self._answers(len(prompts))

    async def generate_from(
        self,
        prefill: DirectRouter,
        here: WorkerPlace,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
    ) -> list[list[int]]:
        """The same, with the prompts computed by ``prefill``; ``here``: where this worker is."""
        for i, prompt in enumerate(prompts):
            await self._open(i, params, mode=pb.Open.HANDOFF)
            message = pb.Prefill(
                key=_key(i),
                token_ids=_tokens(prompt),
                sampling=sampling_to_wire(params),
                decode_worker=here.worker,
                decode_endpoint=here.endpoint,
                decode_epoch=here.epoch,
            )
            await prefill._call.write(pb.RouterMessage(prefill=message))
        return await self._answers(len(prompts))

    async def stats(self) -> pb.WorkerStats:
        """Checked: a broken invariant fails the call."""
        return await self._stub.GetStats(pb.GetStatsRequest(validate=True))

    async def _open(self, number: int, params: SamplingParams, **how: Any) -> None:
        opened = pb.Open(key=_key(number), sampling=sampling_to_wire(params), **how)
        await self._call.write(pb.RouterMessage(open=opened))

    async def _answers(self, count: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(count)]
        finished = 0
        while finished < count:
            message = await self._call.read()
            assert isinstance(message, pb.WorkerMessage), "the stream ended"
            assert not message.HasField("failed"), message.failed
            for output in message.step.outputs:
                answers[int(output.key.request_id)] += output.token_ids
                finished += bool(output.finish_reason)
        return answers


@asynccontextmanager
async def attached(endpoint: str) -> AsyncIterator[DirectRouter]:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        call = stub.Attach()
        await call.write(pb.RouterMessage(attach=pb.Attach(router_id="tests")))
        yield DirectRouter(stub, call)
        call.cancel()


def _key(number: int) -> pb.AttemptKey:
    return pb.AttemptKey(tenant="tests", request_id=str(number), attempt=1)


def _tokens(prompt: Sequence[int]) -> bytes:
    return tokens_to_wire(np.array(prompt, np.int32))
