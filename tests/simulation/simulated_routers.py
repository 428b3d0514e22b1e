"""Routers of a cluster in virtual time: the production dispatcher behind links without sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import cast

from simulated_network import Network
from simulated_store import SimRedis, SimStore
from simulated_workers import BLOCK_SIZE, AttachStream, SimWorker

from core.errors import CrossdockError, RequestCancelled
from core.tenants import DEFAULT_TENANT
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.registry_pb2 import WorkerRecord
from router.access_rules import AccessRules
from router.admission.shared_tenants import SharedTenants
from router.flow.messages import Fail
from router.flow.retries import RetryLimits
from router.metrics.metrics import Metrics
from router.placement import WorkerId
from router.replication.redis_store import RedisStore
from router.replication.replication import Replication
from router.requests.answer_stream import AnswerEvent, Choice, Prompt, Receiver, Write
from router.requests.dispatcher import Dispatcher
from router.requests.read_tickets import ReadTickets
from router.routing.routing_rules import RoutingRules
from router.workers.backoff import Backoff
from router.workers.worker_link import LinkListener, WorkerLink

FindWorker = Callable[[WorkerId], SimWorker | None]


class SimLink:
    """What `router.workers.worker_link.WorkerLink` is to a dispatcher."""

    def __init__(
        self, router: SimRouter, worker: WorkerId, endpoint: str, listener: LinkListener
    ) -> None:
        self.worker = worker
        self.endpoint = endpoint
        self.listed = True
        self._router = router
        self._network = router.network
        self._listener = listener
        self._backoff = Backoff()
        self._stream: AttachStream | None = None
        self._attached = False
        self._closed = False
        self._network.after(self._network.delay(), self._connect)

    def _connect(self) -> None:
        if self._closed or not self.listed:
            return
        found = self._router.find(self.worker)
        if found is None:
            self._network.after(self._backoff.next_pause(), self._connect)
            return
        stream = AttachStream(self._network, found, self._router, self._receive, self._lost)
        attach = pb.Attach(
            router_id=self._router.name,
            cache_epoch=self.worker.epoch,
            cache_sequence=self._listener.cache_sequence(self.worker),
        )
        stream.to_worker.send(pb.RouterMessage(attach=attach))
        self._stream = stream

    def _receive(self, message: pb.WorkerMessage) -> None:
        if self._attached:
            self._listener.on_message(self.worker, message)
        elif message.HasField("welcome"):
            self._attached = True
            self._backoff.reset()
            self._listener.on_attached(self.worker, message.welcome)

    def _lost(self, stream: AttachStream) -> None:
        if self._closed or stream is not self._stream:
            return
        self._stream = None
        if self._attached:
            self._attached = False
            self._listener.on_lost(self.worker)
        self._network.after(self._backoff.next_pause(), self._connect)

    def send(self, message: pb.RouterMessage) -> None:
        if self._attached and self._stream is not None:
            self._stream.to_worker.send(message)

    def delist(self) -> None:
        self.listed = False
        if not self._attached:
            self.cut()

    async def close(self) -> None:
        self.cut()

    def cut(self) -> None:
        self._closed = True
        if self._stream is not None:
            self._stream.cut()


class _WhileAlive:
    """What a dead router's timers bring reaches nobody."""

    def __init__(self, router: SimRouter, answers: Receiver) -> None:
        self._router, self._answers = router, answers

    def choice(self, index: int) -> Choice:
        return Choice(_TokensWhileAlive(self._router, self._answers.choice(index)))

    def event(self, event: AnswerEvent) -> None:
        if self._router.is_alive:
            self._answers.event(event)


class _TokensWhileAlive:
    def __init__(self, router: SimRouter, choice: Choice) -> None:
        self._router, self._choice = router, choice

    def token(self, token_id: int, text: str) -> Write | None:
        return self._choice.sink.token(token_id, text) if self._router.is_alive else None


class _Claiming:
    """A request that all routers have to be asked for first, as `router.intake.request_intake`
    does."""

    def __init__(
        self, dispatcher: Dispatcher, replication: Replication, prompt: Prompt, answers: Receiver
    ) -> None:
        self._answers = answers
        self._end: Callable[[], None] | None = None
        self._task = asyncio.create_task(self._start(dispatcher, replication, prompt))

    async def _start(
        self, dispatcher: Dispatcher, replication: Replication, prompt: Prompt
    ) -> None:
        try:
            await replication.claim([prompt], [prompt.key])
            self._end = dispatcher.start(prompt, self._answers)
        except CrossdockError as error:
            self._answers.event(Fail(error))

    def close(self) -> None:
        if self._end is not None:
            self._end()
        elif self._task.cancel():
            gone = RequestCancelled("cancelled before it began", reason="CLIENT_GONE")
            self._answers.event(Fail(gone))


class SimRouter:
    """One life of one router. ``find``: a worker that can be reached."""

    def __init__(
        self,
        network: Network,
        name: str,
        find: FindWorker,
        rules: RoutingRules,
        access: AccessRules,
        redis: SimRedis | None = None,
    ) -> None:
        self.network, self.name, self.find = network, name, find
        shared = None if redis is None else SharedTenants()
        self.is_alive, self.stalled_until = True, 0.0
        self.links: list[SimLink] = []
        self.dispatcher = Dispatcher(
            block_size=BLOCK_SIZE,
            open_link=self._open_link,
            rules=rules,
            metrics=Metrics(DEFAULT_TENANT, rules.slo, ""),
            random=random.Random(network.random.getrandbits(32)),
            limits=RetryLimits(),
            access=access,
            tickets=ReadTickets(name),
            attempts_after=network.random.randrange(2**20) * 2**12,
            shared=shared,
            clock=lambda: network.now,
        )
        self.replication: Replication | None = None
        if redis is not None and shared is not None:
            self.replication = self._share(redis, shared, access)

    def _share(self, redis: SimRedis, shared: SharedTenants, access: AccessRules) -> Replication:
        replication = Replication(
            self.name,
            cast(RedisStore, SimStore(redis)),
            self.dispatcher,
            shared,
            access.tenant,
            listed=self.hear_list,
            use_secret=lambda secret: None,
            took=lambda seconds: None,
            clock=lambda: self.network.now,
        )
        # The registry is always there.
        replication.controller_listed([], b"")
        replication.start()
        return replication

    def _open_link(self, worker: WorkerId, endpoint: str, listener: LinkListener) -> WorkerLink:
        link = SimLink(self, worker, endpoint, listener)
        self.links.append(link)
        return cast(WorkerLink, link)

    def hear_list(self, records: Sequence[WorkerRecord]) -> None:
        if self.is_alive:
            self.dispatcher.workers.on_listed(records)

    def start(self, prompt: Prompt, answers: Receiver) -> Callable[[], None]:
        """Raises AlreadyExists; where it shares with others, the answer is that."""
        answers = _WhileAlive(self, answers)
        if self.replication is None:
            return self.dispatcher.start(prompt, answers)
        return _Claiming(self.dispatcher, self.replication, prompt, answers).close

    def die(self) -> None:
        """kill −9: workers see broken streams."""
        self.is_alive = False
        if self.replication is not None:
            for task in self.replication._tasks:
                task.cancel()
        for link in self.links:
            link.cut()
