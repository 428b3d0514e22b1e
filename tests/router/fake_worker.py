"""A worker and a registry that speak the real protocols and do what a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc.aio
import numpy as np

from core.cache_events import NO_PARENT, CacheChange, StoredBlocks
from crossdock.v1 import metrics_pb2, registry_pb2, worker_pb2
from crossdock.v1.registry_pb2_grpc import RegistryServicer, add_RegistryServicer_to_server
from crossdock.v1.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from wire.cache_events import change_to_wire

BLOCK_SIZE = 16


async def serve(servicer: Any, add: Any, port: int = 0) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


def sequence_output(
    key: worker_pb2.AttemptKey,
    token_ids: Iterable[int],
    text: str = "",
    finish: str = "",
    cached: int = 0,
    index: int = 0,
    logprobs: Iterable[worker_pb2.TokenLogprobs] = (),
) -> worker_pb2.SequenceOutput:
    return worker_pb2.SequenceOutput(
        key=key,
        token_ids=token_ids,
        text=text,
        finish_reason=finish,
        cached_tokens=cached,
        index=index,
        logprobs=logprobs,
    )


def some_logprobs(token: int, count: int) -> worker_pb2.TokenLogprobs:
    """The chosen token is the likeliest, and the ids after it follow."""
    return worker_pb2.TokenLogprobs(
        logprob=-0.5,
        top_token_ids=range(token, token + count),
        top_logprobs=[-0.5 - number for number in range(count)],
    )


def cache_events(
    epoch: int,
    sequence: int,
    stored: Sequence[int] = (),
    removed: Sequence[int] = (),
    *,
    parent: int = NO_PARENT,
    cleared: bool = False,
) -> worker_pb2.CacheEvents:
    """``stored``: one chain below ``parent``."""
    hashes = np.array(stored, dtype=np.uint64)
    parents = np.array([parent, *stored][: len(stored)], dtype=np.uint64)
    gone = np.array(removed, dtype=np.uint64)
    chains = StoredBlocks.of(hashes, parents)
    return change_to_wire(epoch, CacheChange(sequence, chains, gone, cleared))


class FakeWorker(WorkerServicer):
    """Records what the router sends; answers by the test's calls, or with ``script`` by itself."""

    def __init__(
        self,
        name: str,
        role: str,
        *,
        epoch: int = 1,
        num_blocks: int = 64,
        block_size: int = BLOCK_SIZE,
        max_num_seqs: int = 16,
        cached: Sequence[int] = (),
        script: Sequence[tuple[int, str]] = (),
        metrics: bytes = b"",
        tells_cache: bool = True,
    ) -> None:
        self.metrics = metrics
        self.tells_cache = tells_cache
        self.name, self.role, self.epoch = name, role, epoch
        self.num_blocks, self.block_size = num_blocks, block_size
        self.max_num_seqs = max_num_seqs
        self.cached = cached
        self.script = script
        self.endpoint = ""
        self.attached = 0
        self.attaches: list[worker_pb2.Attach] = []
        self.received: list[worker_pb2.RouterMessage] = []
        # Messages in which all that came.
        self.written = 0
        self._news = asyncio.Condition()
        # One for each router.
        self._outboxes: list[asyncio.Queue[worker_pb2.WorkerMessage]] = []

    async def start(self) -> FakeWorker:
        self._server, port = await serve(self, add_WorkerServicer_to_server)
        self.endpoint = f"127.0.0.1:{port}"
        return self

    async def kill(self) -> None:
        """What the router sees of a kill -9: the connection is gone."""
        await self._server.stop(None)

    def record(self, *, draining: bool = False) -> registry_pb2.WorkerRecord:
        return registry_pb2.WorkerRecord(
            worker=self.name,
            endpoint=self.endpoint,
            epoch=self.epoch,
            role=self.role,
            draining=draining,
        )

    async def Attach(
        self, requests: AsyncIterator[worker_pb2.RouterMessage], context: Any
    ) -> AsyncIterator[worker_pb2.WorkerMessage]:
        first = await anext(aiter(requests))
        assert first.attach.router_id
        self.attaches.append(first.attach)
        self.attached += 1
        outbox: asyncio.Queue[worker_pb2.WorkerMessage] = asyncio.Queue()
        self._outboxes.append(outbox)
        reader = asyncio.create_task(self._read(requests))
        welcome = worker_pb2.Welcome(
            worker=self.name,
            epoch=self.epoch,
            role=self.role,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            metrics_address=f"127.0.0.1:{len(self.name)}" if self.metrics else "",
            cache_events=self.tells_cache,
        )
        try:
            yield worker_pb2.WorkerMessage(welcome=welcome)
            if self.tells_cache:
                events = cache_events(self.epoch, 1, self.cached, cleared=True)
                yield worker_pb2.WorkerMessage(cache=events)
            while True:
                yield await outbox.get()
        finally:
            self._outboxes.remove(outbox)
            reader.cancel()

    async def GetMetrics(self, request: Any, context: Any) -> metrics_pb2.MetricsText:
        if not self.metrics:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "tells nothing")
        return metrics_pb2.MetricsText(text=self.metrics)

    async def _read(self, requests: AsyncIterator[worker_pb2.RouterMessage]) -> None:
        async for told in requests:
            is_one = told.WhichOneof("message") != "several"
            messages = [told] if is_one else list(told.several.messages)
            async with self._news:
                self.written += 1
                self.received += messages
                self._news.notify_all()
            for message in messages:
                if message.WhichOneof("message") == "open" and self.script:
                    self._play(message.open)

    def _play(self, opened: worker_pb2.Open) -> None:
        """The script for each of the n answers, one step of all after the other."""
        asked = opened.sampling.logprobs if opened.sampling.HasField("logprobs") else None
        for position, (token, text) in enumerate(self.script):
            finish = "stop" if position == len(self.script) - 1 else ""
            logprobs = [] if asked is None else [some_logprobs(token, asked)]
            self.step(
                sequence_output(opened.key, [token], text, finish, 16, index, logprobs)
                for index in range(opened.sampling.n)
            )

    async def got(self, kind: str, count: int = 1) -> Any:
        """The ``count``-th message of a kind ("open", "prefill", "abort"); waits for it."""
        async with self._news:
            await self._news.wait_for(lambda: len(self._of(kind)) >= count)
        return getattr(self._of(kind)[count - 1], kind)

    def _of(self, kind: str) -> list[worker_pb2.RouterMessage]:
        return [message for message in self.received if message.WhichOneof("message") == kind]

    def output(
        self,
        key: worker_pb2.AttemptKey,
        token_ids: Iterable[int],
        text: str = "",
        finish: str = "",
        cached: int = 0,
        index: int = 0,
    ) -> None:
        self.step([sequence_output(key, token_ids, text, finish, cached, index)])

    def step(self, outputs: Iterable[worker_pb2.SequenceOutput]) -> None:
        load = worker_pb2.Load(running=1, free_blocks=self.num_blocks)
        self.say(worker_pb2.WorkerMessage(step=worker_pb2.Step(outputs=outputs, load=load)))

    def fail(self, key: worker_pb2.AttemptKey, cause: str, detail: str = "") -> None:
        number = worker_pb2.AttemptFailed.Cause.Value(cause)
        failed = worker_pb2.AttemptFailed(key=key, cause=number, detail=detail)
        self.say(worker_pb2.WorkerMessage(failed=failed))

    def say(self, message: worker_pb2.WorkerMessage) -> None:
        for outbox in self._outboxes:
            outbox.put_nowait(message)


class FakeRegistry(RegistryServicer):
    """Serves the list that the test sets."""

    def __init__(self) -> None:
        self.records: list[registry_pb2.WorkerRecord] = []
        self.metrics, self.metrics_address = b"", ""
        self.secret = b""
        self.reports: dict[str, registry_pb2.RouterReport] = {}
        self._changed = asyncio.Condition()
        self._version = 0

    async def start(self, port: int = 0) -> FakeRegistry:
        self._server, self.port = await serve(self, add_RegistryServicer_to_server, port)
        self.address = f"127.0.0.1:{self.port}"
        return self

    async def stop(self) -> None:
        await self._server.stop(None)

    async def list(self, *records: registry_pb2.WorkerRecord) -> None:
        async with self._changed:
            self.records = list(records)
            self._version += 1
            self._changed.notify_all()

    async def GetMetrics(self, request: Any, context: Any) -> metrics_pb2.MetricsText:
        return metrics_pb2.MetricsText(text=self.metrics)

    async def ReportRouter(
        self, request: registry_pb2.RouterReport, context: Any
    ) -> registry_pb2.RouterReported:
        self.reports[request.router_id] = request
        return registry_pb2.RouterReported()

    async def Watch(
        self, request: registry_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[registry_pb2.WorkerList]:
        assert request.router_id
        while True:
            seen = self._version
            yield registry_pb2.WorkerList(
                workers=self.records,
                metrics_address=self.metrics_address,
                cache_secret=self.secret,
            )
            async with self._changed:
                await self._changed.wait_for(lambda seen=seen: self._version != seen)
