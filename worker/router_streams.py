"""The worker's end of the request plane: one multiplexed stream per router.

Covers: welcoming routers, one message per engine step and router, cache events, which router an
attempt belongs to. A router whose stream breaks has lost its attempts at once: it treats this
worker as lost in the same moment and retries elsewhere, so nothing could be resumed.
Does not cover: what the messages lead to (`worker.service`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from core.request import AttemptKey
from crossdock.v1 import worker_pb2 as pb
from wire.attempts import key_from_wire

_log = logging.getLogger(__name__)

# A router that is this many messages behind gets no cache events: it asks for them when it comes
# to a later one. Tokens always wait for it.
_SLOW_AT = 4096


@dataclass(slots=True)
class _Further:
    """Columns of FurtherTokens. Lists, as those of a message take longer to append to."""

    answers: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class RouterStream:
    """One router, from its Attach to the end of its stream."""

    def __init__(self, router_id: str, ticket_key: bytes = b"") -> None:
        self.router_id = router_id
        self.ticket_key = ticket_key
        # None: the router says nothing more.
        self.outbox: asyncio.Queue[pb.WorkerMessage | None] = asyncio.Queue()
        self.lacks_events = False
        self._last_load: pb.Load | None = None
        self._last_change = 0
        self._next = pb.WorkerMessage()
        self._further = _Further()

    @property
    def next_step(self) -> pb.Step:
        """The Step message that the next `send_step` sends."""
        return self._next.step

    def add_token(self, answer: int, token: int, text: str) -> None:
        """To that message, of the answer with this number."""
        self._further.answers.append(answer)
        self._further.token_ids.append(token)
        self._further.texts.append(text)

    def send_step(self, load: pb.Load, last_change: int, changed: pb.CacheEvents | None) -> None:
        """Nothing, if there is no token in it, and the load and the last cache event are known."""
        step = self._next.step
        known = self._last_load == load and self._last_change == last_change
        if self._further.answers:
            self._write_further(step.further)
            known = False
        if step.outputs or not known:
            step.load.CopyFrom(load)
            step.cache_sequence = last_change
            if changed is not None and self.outbox.qsize() < _SLOW_AT:
                step.cache.CopyFrom(changed)
            self.outbox.put_nowait(self._next)
            self._next = pb.WorkerMessage()
            self._last_load, self._last_change = load, last_change

    def _write_further(self, message: pb.FurtherTokens) -> None:
        message.answers.extend(self._further.answers)
        message.token_ids.extend(self._further.token_ids)
        message.texts.extend(self._further.texts)
        self._further = _Further()


class _Owner(NamedTuple):
    """Whose attempt it is. ``first_answer``: as Open says."""

    stream: RouterStream
    first_answer: int


class RouterHandler(Protocol):
    """Who acts on what routers say. Called on the event loop."""

    def on_router_message(self, message: pb.RouterMessage) -> None: ...

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None: ...

    def greet(self, attach: pb.Attach) -> Sequence[pb.WorkerMessage]:
        """The first messages of a stream: welcome, and what is cached."""
        ...

    def missed_changes(self, after: int) -> Sequence[pb.CacheEvents]:
        """Of this life, all after the one with this number."""
        ...


class RouterStreams:
    """All attached routers of one worker."""

    def __init__(self, handler: RouterHandler) -> None:
        self._handler = handler
        self._streams: list[RouterStream] = []
        self._owners: dict[AttemptKey, _Owner] = {}

    @property
    def num_routers(self) -> int:
        return len({stream.router_id for stream in self._streams})

    @property
    def num_lacking_events(self) -> int:
        """Routers that get no cache events, as they say."""
        return sum(stream.lacks_events for stream in self._streams)

    @property
    def attempts(self) -> tuple[AttemptKey, ...]:
        """All that routers still wait for."""
        return tuple(self._owners)

    def ticket_key(self, router_id: str) -> bytes | None:
        """With which an attached router signs tickets; None if it is not attached."""
        keys = (stream.ticket_key for stream in self._streams if stream.router_id == router_id)
        return next(keys, None)

    def owners_ticket_key(self, key: AttemptKey) -> bytes:
        """With which the attempt's router signs; raises KeyError if nobody waits for it."""
        return self._owners[key].stream.ticket_key

    async def attach(
        self, requests: AsyncIterator[pb.RouterMessage]
    ) -> AsyncIterator[pb.WorkerMessage]:
        """Serves one `Worker.Attach` call."""
        first = await anext(requests, None)
        if first is None:
            # It was lost before it said who it is.
            return
        stream = RouterStream(first.attach.router_id, first.attach.ticket_key)
        for greeting in self._handler.greet(first.attach):
            stream.outbox.put_nowait(greeting)
        self._streams.append(stream)
        _log.info("router %s attached", stream.router_id)
        reader = asyncio.create_task(self._read(stream, requests))
        reader.add_done_callback(lambda _: stream.outbox.put_nowait(None))
        try:
            while (message := await stream.outbox.get()) is not None and not reader.done():
                yield message
        finally:
            reader.cancel()
            self._detach(stream)

    async def _read(self, stream: RouterStream, requests: AsyncIterator[pb.RouterMessage]) -> None:
        async for told in requests:
            is_one = told.WhichOneof("message") != "several"
            try:
                for message in (told,) if is_one else told.several.messages:
                    self._note_owner(stream, message)
                    self._handle(stream, message)
            except Exception:
                _log.exception("closing the stream of router %s", stream.router_id)
                return

    def _handle(self, stream: RouterStream, message: pb.RouterMessage) -> None:
        match message.WhichOneof("message"):
            case "cache_request":
                after = message.cache_request.after_sequence
                for events in self._handler.missed_changes(after):
                    stream.outbox.put_nowait(pb.WorkerMessage(cache=events))
            case "cache_fallback":
                stream.lacks_events = message.cache_fallback.active
            case _:
                self._handler.on_router_message(message)

    def _note_owner(self, stream: RouterStream, message: pb.RouterMessage) -> None:
        match message.WhichOneof("message"):
            case "prefill":
                self._owners[key_from_wire(message.prefill.key)] = _Owner(stream, 0)
            case "open":
                opened = message.open
                self._owners[key_from_wire(opened.key)] = _Owner(stream, opened.first_answer)

    def _detach(self, stream: RouterStream) -> None:
        self._streams.remove(stream)
        orphans = [key for key, owner in self._owners.items() if owner.stream is stream]
        for key in orphans:
            del self._owners[key]
        self._handler.on_router_lost(orphans)

    def forget(self, key: AttemptKey) -> None:
        """The attempt is over: nothing more will be sent about it."""
        self._owners.pop(key, None)

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput:
        """A place for an output in the next Step message to the attempt's router."""
        owner = self._owners.get(key)
        return pb.SequenceOutput() if owner is None else owner.stream.next_step.outputs.add()

    def go_on(self, key: AttemptKey, index: int, token: int, text: str) -> bool:
        """One more token of an answer, in the next Step message, where that has no output of it.
        False: the router wants it as an output."""
        owner = self._owners.get(key)
        if owner is None or not owner.first_answer:
            return False
        owner.stream.add_token(owner.first_answer + index, token, text)
        return True

    def send_step(
        self, load: pb.Load, last_change: int, changed: pb.CacheEvents | None = None
    ) -> None:
        """One Step message to each router that has outputs in it, or lacks the load or the number
        of the last cache event. ``changed``: what is new in the prefix cache, up to that number."""
        for stream in self._streams:
            stream.send_step(load, last_change, changed)

    def send_failure(self, key: AttemptKey, failure: pb.AttemptFailed) -> None:
        """Tells the attempt's router, then forgets the attempt."""
        owner = self._owners.pop(key, None)
        if owner is not None:
            owner.stream.outbox.put_nowait(pb.WorkerMessage(failed=failure))
