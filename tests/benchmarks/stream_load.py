"""Clients that cost next to nothing, to measure what is between them and the tokens.

Each client asks again as soon as its answer has ended. Bytes are counted, not parsed: every token
of `fake_fleet` says the same word. Covers HTTP (server-sent events), gRPC, and a worker's own
stream without a router.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import grpc.aio
import numpy as np
from fake_fleet import WORD

from crossdock.v1 import inference_pb2
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.worker_pb2_grpc import WorkerStub
from wire.attempts import tokens_to_wire

_WORD = WORD.encode()
_END = b"\r\n0\r\n\r\n"
_GENERATE = "/crossdock.v1.Inference/Generate"
FIRST_ID, LAST_ID = 1000, 40_000


@dataclass(slots=True)
class Tally:
    """What all clients got so far. ``ttft_s`` and ``gaps_s`` (between arrivals of an answer) only
    if they are ``timed``."""

    requests: int = 0
    tokens: int = 0
    timed: bool = False
    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    _sent: float = 0.0
    _last: float = 0.0

    def sent(self) -> None:
        if self.timed:
            self._sent, self._last = time.perf_counter(), 0.0

    def got(self, tokens: int) -> None:
        self.tokens += tokens
        if self.timed and tokens:
            now = time.perf_counter()
            if self._last:
                self.gaps_s.append(now - self._last)
            else:
                self.ttft_s.append(now - self._sent)
            self._last = now


class Client(Protocol):
    """One that asks on and on."""

    async def run(self) -> None: ...


class HttpClient(asyncio.Protocol):
    """One connection that is kept alive."""

    def __init__(self, address: str, bodies: Sequence[bytes], tally: Tally) -> None:
        self._address, self._tally = address, tally
        self._requests = [post_bytes(address, body) for body in bodies]
        self._next = 0
        self._tail = b""
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        host, port = self._address.split(":")
        await asyncio.get_running_loop().create_connection(lambda: self, host, int(port))
        try:
            await self._lost
        finally:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_exception(error or ConnectionError("the router closed a connection"))

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            if not self._lost.done():
                self._lost.set_exception(RuntimeError(data.decode()))
            return
        seen = self._tail + data
        self._tally.got(seen.count(_WORD) - self._tail.count(_WORD))
        self._tail = seen[-len(_END) :]
        if self._tail == _END:
            self._tally.requests += 1
            self._ask()

    def _ask(self) -> None:
        self._tail = b""
        self._tally.sent()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1


def post_bytes(address: str, body: bytes) -> bytes:
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class GrpcClient:
    """One call after the other. Messages stay bytes."""

    def __init__(self, channel: grpc.aio.Channel, bodies: Sequence[bytes], tally: Tally) -> None:
        self._generate = channel.unary_stream(_GENERATE)
        self._bodies, self._tally = bodies, tally

    async def run(self) -> None:
        number = 0
        while True:
            self._tally.sent()
            async for message in self._generate(self._bodies[number % len(self._bodies)]):
                self._tally.got(message.count(_WORD))
            self._tally.requests += 1
            number += 1


class DirectClient:
    """A worker's stream, as a router opens it, with prompts that it computes by itself."""

    def __init__(self, endpoint: str, prompts: Prompts, tally: Tally) -> None:
        self._endpoint, self._prompts, self._tally = endpoint, prompts, tally

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._endpoint) as channel:
            call = WorkerStub(channel).Attach()
            await call.write(pb.RouterMessage(attach=pb.Attach(router_id="direct")))
            for number in range(1 << 30):
                self._tally.sent()
                await call.write(pb.RouterMessage(open=self._prompts.opened(number)))
                await self._answer(call)

    async def _answer(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        while True:
            message = await call.read()
            for output in message.step.outputs:
                self._tally.got(len(output.token_ids))
                if output.finish_reason:
                    self._tally.requests += 1
                    return


class Prompts:
    """Of ``tokens`` random ids each, with ``answer`` tokens to come."""

    def __init__(self, tokens: int, answer: int, count: int = 2048, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._ids = generator.integers(FIRST_ID, LAST_ID, (count, tokens)).astype(np.int32)
        self._answer = answer

    def http(self) -> list[bytes]:
        """Bodies of /v1/completions."""
        rest = f'],"stream":true,"ignore_eos":true,"temperature":0,"max_tokens":{self._answer}}}'
        return [
            f'{{"prompt":[{",".join(map(str, ids))}{rest}'.encode() for ids in self._ids.tolist()
        ]

    def grpc(self) -> list[bytes]:
        """Requests of Generate."""
        sampling = inference_pb2.SamplingParams(
            temperature=0.0, max_tokens=self._answer, ignore_eos=True
        )
        return [
            inference_pb2.GenerateRequest(
                token_ids=inference_pb2.TokenIds(ids=ids), sampling=sampling
            ).SerializeToString()
            for ids in self._ids.tolist()
        ]

    def opened(self, number: int) -> pb.Open:
        ids = self._ids[number % len(self._ids)]
        key = pb.AttemptKey(tenant="default", request_id=f"direct-{number}", attempt=1)
        sampling = pb.Sampling(max_tokens=self._answer, n=1)
        return pb.Open(
            key=key, mode=pb.Open.LOCAL, token_ids=tokens_to_wire(ids), sampling=sampling
        )


def split(bodies: Sequence[bytes], clients: int) -> list[Sequence[bytes]]:
    """Prompts of its own for each client."""
    return [bodies[number::clients] for number in range(clients)]


async def run_while(clients: Sequence[Client], measure: Callable[[], Awaitable[None]]) -> None:
    """All ``clients`` until ``measure`` is over; raises what one of them raises."""
    tasks = [asyncio.ensure_future(client.run()) for client in clients]
    measuring = asyncio.ensure_future(measure())
    await asyncio.wait([*tasks, measuring], return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, measuring):
        if task.done():
            task.result()
        else:
            task.cancel()
    await asyncio.gather(*tasks, measuring, return_exceptions=True)
