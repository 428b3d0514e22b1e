"""The workers that this router knows, from the registry's list and from their own streams.

Covers: links to all listed workers, who may get new requests and why another may not. Does not
cover: requests (``router.requests.dispatcher``), loads and cached blocks
(``router.routing.routing_state``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.request import Role
from crossdock.v1 import registry_pb2, worker_pb2
from router.placement import WorkerId, WorkerView
from router.routing.routing_state import RoutingState
from router.workers.worker_link import LinkListener, WorkerLink

log = logging.getLogger(__name__)

NOT_ATTACHED = "not attached"

LinkFactory = Callable[[WorkerId, str, LinkListener], WorkerLink]


@dataclass(slots=True)
class PooledWorker:
    """One worker. ``excluded`` says why it gets no new requests; "" if it does."""

    worker: WorkerId
    role: Role
    link: WorkerLink
    listed: bool = True
    excluded: str = NOT_ATTACHED
    attached: bool = False
    metrics_address: str = ""
    token_stream_address: str = ""

    @property
    def usable(self) -> bool:
        return self.listed and not self.excluded


class WorkerPool:
    """All workers by id. ``routing`` is told which of them are attached."""

    def __init__(
        self,
        block_size: int,
        open_link: LinkFactory,
        listener: LinkListener,
        routing: RoutingState,
    ) -> None:
        self._routing = routing
        self._block_size = block_size
        self._open_link = open_link
        self._listener = listener
        self._workers: dict[WorkerId, PooledWorker] = {}
        self._draining: set[WorkerId] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def update(self, records: Sequence[registry_pb2.WorkerRecord]) -> None:
        """Take the registry's full list over. Raises nothing: a strange record is skipped."""
        listed = {WorkerId(record.worker, record.epoch): record for record in records}
        self._draining = {worker for worker, record in listed.items() if record.draining}
        for worker, record in listed.items():
            if worker in self._workers:
                self._list_again(self._workers[worker])
            else:
                self._add(worker, record)
        for worker, pooled in list(self._workers.items()):
            if worker not in listed:
                self._delist(pooled)
        self._tell_usable()

    def attached(self, worker: WorkerId, welcome: worker_pb2.Welcome) -> None:
        pooled = self._workers[worker]
        pooled.attached, pooled.metrics_address = True, welcome.metrics_address
        pooled.token_stream_address = welcome.token_stream_address
        self._routing.attached(worker, pooled.role, welcome.num_blocks, welcome.max_num_seqs)
        pooled.excluded = self._difference(pooled, welcome)
        if pooled.excluded:
            log.error("worker %s gets no requests: %s", worker, pooled.excluded)
        self._tell_usable()

    def lost(self, worker: WorkerId) -> None:
        """The stream broke: its load is unknown until it attaches again."""
        pooled = self._workers[worker]
        pooled.excluded, pooled.attached = NOT_ATTACHED, False
        self._routing.lost(worker)
        if not pooled.listed:
            self._forget(pooled)
        self._tell_usable()

    def refused(self, worker: WorkerId) -> None:
        """It is being drained and takes nothing new; the registry's list will say so, too."""
        if worker not in self._draining:
            self._draining.add(worker)
            self._tell_usable()

    @property
    def expecting(self) -> bool:
        """Whether a listed worker is not attached yet: there may be room in a moment."""
        return any(
            pooled.listed and pooled.excluded == NOT_ATTACHED and worker not in self._draining
            for worker, pooled in self._workers.items()
        )

    def send(self, worker: WorkerId, message: worker_pb2.RouterMessage) -> None:
        """A worker that is gone is skipped: whoever waits for it has been told of the loss."""
        pooled = self._workers.get(worker)
        if pooled is not None:
            pooled.link.send(message)

    def endpoint(self, worker: WorkerId) -> str:
        return self._workers[worker].link.endpoint

    def token_stream(self, worker: WorkerId) -> str:
        """Where clients read tokens from it, host:port; "": nowhere."""
        return self._workers[worker].token_stream_address

    def candidates(self) -> list[WorkerView]:
        """What is known of workers that may get new requests."""
        return self._routing.views

    def _tell_usable(self) -> None:
        """Whenever the answer to the question who may get new requests may have changed."""
        self._routing.use(
            worker
            for worker, pooled in self._workers.items()
            if pooled.usable and worker not in self._draining
        )

    def excluded(self) -> dict[WorkerId, str]:
        """Workers that get no new requests, and why."""
        reasons = {worker: pooled.excluded for worker, pooled in self._workers.items()}
        reasons |= {worker: "draining" for worker in self._draining if worker in reasons}
        return {worker: reason for worker, reason in reasons.items() if reason}

    def guessed(self) -> dict[str, bool]:
        """Whether what it caches is guessed, by the name of each attached worker."""
        caches = self._routing.caches
        return {w.name: caches.is_guessed(w) for w, p in self._workers.items() if p.attached}

    def names(self) -> list[str]:
        """Of all that it knows, each once."""
        return sorted({worker.name for worker in self._workers})

    def attached_workers(self) -> list[PooledWorker]:
        return [pooled for pooled in self._workers.values() if pooled.attached]

    def largest_decode_pool(self) -> int | None:
        """Blocks of the largest KV pool that decodes; None while no such worker is usable."""
        return self._routing.columns.largest_pool

    def most_sequences(self) -> int | None:
        """Answers that the largest decode worker runs at a time; None while there is none."""
        return self._routing.columns.most_sequences

    @property
    def ready(self) -> bool:
        return self.largest_decode_pool() is not None

    async def close(self) -> None:
        links = [pooled.link for pooled in self._workers.values()]
        await asyncio.gather(*(link.close() for link in links), *self._closing)

    def _add(self, worker: WorkerId, record: registry_pb2.WorkerRecord) -> None:
        try:
            role = Role(record.role)
        except ValueError:
            log.error("worker %s is skipped: unknown role %r", worker, record.role)
            return
        link = self._open_link(worker, record.endpoint, self._listener)
        self._workers[worker] = PooledWorker(worker, role, link)

    @staticmethod
    def _list_again(pooled: PooledWorker) -> None:
        pooled.listed = pooled.link.listed = True

    def _delist(self, pooled: PooledWorker) -> None:
        pooled.listed = False
        pooled.link.delist()
        if not pooled.attached:
            self._forget(pooled)

    def _forget(self, pooled: PooledWorker) -> None:
        del self._workers[pooled.worker]
        self._routing.gone(pooled.worker)
        closing = asyncio.create_task(pooled.link.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _difference(self, pooled: PooledWorker, welcome: worker_pb2.Welcome) -> str:
        if welcome.role != pooled.role.value:
            return f"the registry says it is {pooled.role.value}, itself says {welcome.role}"
        if welcome.block_size != self._block_size:
            return f"its block size is {welcome.block_size}, here it is {self._block_size}"
        return ""
