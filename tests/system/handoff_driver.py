"""The smallest router: sends one prompt to a given P and a given D and collects D's answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence

import grpc
import numpy as np

from cluster.worker_host import WorkerPlace
from core.tls_files import TlsFiles
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1 import worker_pb2_grpc
from wire.tls_grpc import open_channel

ANSWER_TIMEOUT_S = 60.0
NO_TLS: Mapping[str, TlsFiles] = {}
_numbers = itertools.count(1)


class HandoffFailed(Exception):
    """A worker said that the attempt failed."""


class HandoffDriver:
    """Attached to the workers at ``places``, by name; over TLS to those that ``tls`` has files
    for."""

    def __init__(self, places: Sequence[WorkerPlace], tls: Mapping[str, TlsFiles]) -> None:
        self._tls = tls
        self._places = {place.worker: place for place in places}
        self._calls: dict[str, grpc.aio.StreamStreamCall] = {}  # type: ignore[type-arg]
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._answers: dict[str, asyncio.Queue[pb.SequenceOutput | pb.AttemptFailed]] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def attach(self) -> None:
        for name, place in self._places.items():
            channel = self._channels[name] = open_channel(place.endpoint, self._tls.get(name))
            call = self._calls[name] = worker_pb2_grpc.WorkerStub(channel).Attach()
            await call.write(pb.RouterMessage(attach=pb.Attach(router_id="driver")))
            self._readers.append(asyncio.create_task(self._read(call)))

    async def close(self) -> None:
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    async def answer(self, prefill: str, decode: str, prompt: list[int], count: int) -> list[int]:
        """Exactly ``count`` greedy tokens. Raises `HandoffFailed` with the worker's words."""
        return await self.collect(await self.begin(prefill, decode, prompt, count))

    async def begin(
        self, prefill: str, decode: str, prompt: list[int], count: int, deadline_s: float = 0.0
    ) -> str:
        """Asks both workers, after all that was asked before. Returns the request's id.

        ``deadline_s``: after so many seconds each of them gives up by itself; 0: never.
        """
        key = pb.AttemptKey(tenant="", request_id=f"request-{next(_numbers)}", attempt=1)
        self._answers[key.request_id] = asyncio.Queue()
        # A salt of its own: nothing may come from the prefix cache of an earlier pair.
        salt = next(_numbers)
        sampling = pb.Sampling(
            max_tokens=count, ignore_eos=True, n=1, top_p=1, repetition_penalty=1
        )
        opened = pb.Open(
            key=key, mode=pb.Open.HANDOFF, sampling=sampling, salt=salt, deadline_s=deadline_s
        )
        await self._calls[decode].write(pb.RouterMessage(open=opened))
        place = self._places[decode]
        work = pb.Prefill(
            key=key,
            token_ids=np.array(prompt, np.int32).tobytes(),
            sampling=sampling,
            decode_worker=decode,
            decode_endpoint=place.endpoint,
            decode_epoch=place.epoch,
            salt=salt,
            deadline_s=deadline_s,
        )
        await self._calls[prefill].write(pb.RouterMessage(prefill=work))
        return key.request_id

    async def collect(self, request_id: str) -> list[int]:
        """The tokens of what was begun. Raises `HandoffFailed` with the worker's words."""
        return await asyncio.wait_for(self._collect(request_id), ANSWER_TIMEOUT_S)

    async def abort_all(self, worker: str) -> None:
        """Gives up what this worker may still be asked for."""
        for request_id in self._answers:
            key = pb.AttemptKey(tenant="", request_id=request_id, attempt=1)
            await self._calls[worker].write(pb.RouterMessage(abort=pb.Abort(key=key)))

    async def stats(self, worker: str) -> pb.WorkerStats:
        """Checked by the worker's own invariants."""
        stub = worker_pb2_grpc.WorkerStub(self._channels[worker])
        answer: pb.WorkerStats = await stub.GetStats(pb.GetStatsRequest(validate=True))
        return answer

    async def _collect(self, request_id: str) -> list[int]:
        tokens: list[int] = []
        while True:
            output = await self._answers[request_id].get()
            if isinstance(output, pb.AttemptFailed):
                raise HandoffFailed(output.detail)
            tokens += output.token_ids
            if output.finish_reason:
                del self._answers[request_id]
                return tokens

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (message := await call.read()) is not grpc.aio.EOF:
                for output in message.step.outputs:
                    self._answers[output.key.request_id].put_nowait(output)
                if message.HasField("failed"):
                    self._answers[message.failed.key.request_id].put_nowait(message.failed)


@contextlib.asynccontextmanager
async def attached(
    places: Sequence[WorkerPlace], tls: Mapping[str, TlsFiles] = NO_TLS
) -> AsyncIterator[HandoffDriver]:
    driver = HandoffDriver(places, tls)
    try:
        await driver.attach()
        yield driver
    finally:
        await driver.close()
