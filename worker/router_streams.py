"""The worker's end of the request plane: one multiplexed stream per router.

Covers: welcoming routers, one message per engine step and router, cache events, which router an
attempt belongs to. A router whose stream breaks has lost its attempts at once: it treats this
worker as lost in the same moment and retries elsewhere, so nothing could be resumed.
Does not cover: what the messages lead to (`worker.service`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

from core.block_hash import HashArray
from core.request import AttemptKey
from crossdock.v1 import worker_pb2 as pb
from wire.attempts import hashes_to_wire, key_from_wire

_log = logging.getLogger(__name__)


class RouterStream:
    """One router, from its Attach to the end of its stream."""

    def __init__(self, router_id: str) -> None:
        self.router_id = router_id
        self.outbox: asyncio.Queue[pb.WorkerMessage] = asyncio.Queue()
        self._last_load: pb.Load | None = None
        self._next = pb.WorkerMessage()

    @property
    def next_step(self) -> pb.Step:
        """The Step message that the next `send_step` sends."""
        return self._next.step

    def send_step(self, load: pb.Load) -> None:
        """Nothing, if there is no output in it and the load is known."""
        step = self._next.step
        if step.outputs or self._last_load != load:
            step.load.CopyFrom(load)
            self.outbox.put_nowait(self._next)
            self._next = pb.WorkerMessage()
            self._last_load = load


class RouterHandler(Protocol):
    """Who acts on what routers say. Called on the event loop."""

    def on_router_message(self, message: pb.RouterMessage) -> None: ...

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None: ...


class RouterStreams:
    """All attached routers of one worker."""

    def __init__(self, handler: RouterHandler, greet: Callable[[], list[pb.WorkerMessage]]) -> None:
        """``greet`` gives the first messages of a stream: welcome and cache snapshot."""
        self._handler = handler
        self._greet = greet
        self._streams: set[RouterStream] = set()
        self._owners: dict[AttemptKey, RouterStream] = {}

    @property
    def num_routers(self) -> int:
        return len({stream.router_id for stream in self._streams})

    @property
    def attempts(self) -> tuple[AttemptKey, ...]:
        """All that routers still wait for."""
        return tuple(self._owners)

    async def attach(
        self, requests: AsyncIterator[pb.RouterMessage]
    ) -> AsyncIterator[pb.WorkerMessage]:
        """Serves one `Worker.Attach` call."""
        first = await anext(requests)
        stream = RouterStream(first.attach.router_id)
        for message in self._greet():
            stream.outbox.put_nowait(message)
        self._streams.add(stream)
        _log.info("router %s attached", stream.router_id)
        reader = asyncio.create_task(self._read(stream, requests))
        try:
            while not reader.done():
                waiting = asyncio.ensure_future(stream.outbox.get())
                await asyncio.wait((waiting, reader), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    break
                yield waiting.result()
        finally:
            reader.cancel()
            self._detach(stream)

    async def _read(self, stream: RouterStream, requests: AsyncIterator[pb.RouterMessage]) -> None:
        async for message in requests:
            self._note_owner(stream, message)
            try:
                self._handler.on_router_message(message)
            except Exception:
                _log.exception("closing the stream of router %s", stream.router_id)
                return

    def _note_owner(self, stream: RouterStream, message: pb.RouterMessage) -> None:
        match message.WhichOneof("message"):
            case "prefill":
                self._owners[key_from_wire(message.prefill.key)] = stream
            case "open":
                self._owners[key_from_wire(message.open.key)] = stream

    def _detach(self, stream: RouterStream) -> None:
        self._streams.discard(stream)
        orphans = [key for key, owner in self._owners.items() if owner is stream]
        for key in orphans:
            del self._owners[key]
        self._handler.on_router_lost(orphans)

    def forget(self, key: AttemptKey) -> None:
        """The attempt is over: nothing more will be sent about it."""
        self._owners.pop(key, None)

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput:
        """A place for an output in the next Step message to the attempt's router."""
        owner = self._owners.get(key)
        return pb.SequenceOutput() if owner is None else owner.next_step.outputs.add()

    def send_step(self, load: pb.Load) -> None:
        """One Step message to each router that has outputs in it, or does not know the load."""
        for stream in self._streams:
            stream.send_step(load)

    def send_failure(self, key: AttemptKey, failure: pb.AttemptFailed) -> None:
        """Tells the attempt's router, then forgets the attempt."""
        owner = self._owners.pop(key, None)
        if owner is not None:
            owner.outbox.put_nowait(pb.WorkerMessage(failed=failure))

    def send_cache_events(self, stored: HashArray, removed: HashArray) -> None:
        if not len(stored) and not len(removed):
            return
        events = pb.CacheEvents(stored=hashes_to_wire(stored), removed=hashes_to_wire(removed))
        for stream in self._streams:
            stream.outbox.put_nowait(pb.WorkerMessage(cache=events))
