"""Workers with real block pools, routers with real indexes, and a network that can't be trusted.

Messages are lost, late and doubled; workers restart, streams break. Time is virtual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

import numpy as np

from core.block_pool import BlockPool
from crossdock.v1 import worker_pb2 as pb
from router.placement import WorkerId
from router.prefix_index.cache_view import AskEvents
from router.prefix_index.worker_caches import WorkerCaches
from wire.cache_events import change_from_wire
from worker.cache_publisher import CachePublisher

NUM_BLOCKS = 24
_BEAT_S = 0.3
_STEP_S = 0.05


class World:
    """``faults``: the chance of each message to be lost, doubled or late."""

    def __init__(
        self, seed: int, routers: int, workers: int, faults: float, max_blocks: int = 1 << 20
    ) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.resting = False
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.workers = [Worker(self, f"w{number}") for number in range(workers)]
        self.routers = [Router(self, max_blocks) for _ in range(routers)]
        for router in self.routers:
            for worker in self.workers:
                router.list(worker)

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heappush(self._due, (self.now + delay_s, self._count, act, args))

    def send(self, act: Callable[..., None], *args: Any) -> None:
        """One message: it arrives once and in order, or as the faults want it."""
        draw = self.random.random
        times = 1 if draw() >= self.faults else self.random.choice([0, 2])
        for _ in range(times):
            late = draw() * 0.5 if draw() < self.faults else 0.0
            self.after(0.001 + late, act, *args)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, act, args = heappop(self._due)
            act(*args)
        self.now = end


@dataclass(slots=True)
class Worker:
    """Computes random prompts with common beginnings, one each step."""

    world: World
    name: str
    epoch: int = 0
    routers: list[Router] = field(default_factory=list)
    pool: BlockPool = field(init=False)
    publisher: CachePublisher = field(init=False)

    def __post_init__(self) -> None:
        self.live()
        self.step()
        self.beat()

    @property
    def id(self) -> WorkerId:
        return WorkerId(self.name, self.epoch)

    def live(self) -> None:
        """The next life: an empty cache, no streams."""
        self.epoch += 1
        self.routers = []
        self.pool = BlockPool(NUM_BLOCKS, 1)
        self.publisher = CachePublisher(self.pool, self.epoch)

    def step(self) -> None:
        if not self.world.resting:
            self.compute()
            self.tell()
        self.world.after(_STEP_S, self.step)

    def compute(self) -> None:
        """A prompt, of a few with many common beginnings, as a chain of hashes."""
        random = self.world.random
        tokens = np.array(
            [random.randrange(2) for _ in range(random.randrange(1, 10))], dtype=np.int32
        )
        hashes = np.array([chain_hash(tokens[: n + 1]) for n in range(len(tokens))], np.uint64)
        held = self.pool.match_prefix(hashes, tokens)
        self.pool.acquire(held)
        new = self.pool.allocate(len(tokens) - len(held))
        assert new is not None
        blocks = np.concatenate([held, new])
        self.pool.publish(blocks, hashes, tokens, None)
        self.pool.release(blocks)

    def tell(self) -> None:
        self._send(self.publisher.drain())

    def _send(self, events: pb.CacheEvents | None) -> None:
        if events is not None:
            for router in self.routers:
                self.world.send(router.hear, self.id, events)

    def beat(self) -> None:
        for router in self.routers:
            self.world.send(router.hear_of, self.id, self.publisher.sequence)
        self.world.after(_BEAT_S, self.beat)

    def attach(self, router: Router, worker: WorkerId, sequence: int) -> None:
        if worker == self.id:
            self.routers = [*(r for r in self.routers if r is not router), router]
            self.answer(router, worker, sequence)

    def answer(self, router: Router, worker: WorkerId, sequence: int) -> None:
        if worker == self.id:
            drained, missing = self.publisher.catch_up(worker.epoch, sequence)
            self._send(drained)
            for events in missing:
                self.world.send(router.hear, worker, events)


class Router:
    def __init__(self, world: World, max_blocks: int) -> None:
        self._world = world
        self.caches = WorkerCaches(max_blocks)
        self._listed: dict[str, tuple[WorkerId, Worker]] = {}

    def list(self, worker: Worker) -> None:
        """The registry tells of the worker's present life."""
        before = self._listed.get(worker.name)
        if before is not None and before[0] != worker.id:
            self.caches.forget(before[0])
        self._listed[worker.name] = worker.id, worker
        self.attach(worker.name)

    def attach(self, name: str) -> None:
        """A new stream, the first one or after a break. Streams come up: they are TCP."""
        worker_id, worker = self._listed[name]
        self.caches.attached(worker_id, NUM_BLOCKS)
        self._world.after(0.001, worker.attach, self, worker_id, self.caches.sequence(worker_id))

    def hear(self, worker: WorkerId, events: pb.CacheEvents) -> None:
        change = change_from_wire(events)
        self._ask(worker, self.caches.take(worker, events.epoch, change, self._world.now))

    def hear_of(self, worker: WorkerId, sequence: int) -> None:
        now = self._world.now
        self._ask(worker, self.caches.hears_of(worker, worker.epoch, sequence, now))

    def _ask(self, worker: WorkerId, ask: AskEvents | None) -> None:
        if ask is not None:
            _, asked = self._listed[worker.name]
            self._world.send(asked.answer, self, worker, ask.after)

    def held(self, worker: Worker) -> set[int]:
        """Of what the worker could hold, what this router believes it does."""
        index = self.caches.index
        held = {block for block in ALL_BLOCKS if index.holds(worker.id, block)}
        assert index.num_held(worker.id) == len(held)
        return held


def chain_hash(tokens: np.ndarray) -> int:
    """Of the block that ends this beginning of a prompt."""
    return int("1" + "".join(map(str, tokens.tolist())), 2)


ALL_BLOCKS = range(2, 1 << 10)
